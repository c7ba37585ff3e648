"""Runs in ONNX Runtime, in a session of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prunella.errors import ConfigError, ExportError
from prunella.runtimes.converting import reason
from prunella.runtimes.prepared import Array, Prepared, widened
from prunella.runtimes.runtime import Runtime, required

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_QUIET = 3  # errors only: warnings about how it places nodes help nobody who prunes


def load(file: Path | bytes, feeds: dict[str, Array], runtime: Runtime) -> Prepared:
    """Load an ONNX file, or one in memory, with inputs in place."""
    ort = required("onnxruntime", "onnx")
    provider = provider_of(runtime)
    options = ort.SessionOptions()
    options.log_severity_level = _QUIET
    if runtime.threads is not None:
        options.intra_op_num_threads = runtime.threads
    # Threads that wait for more work by turning in circles would take the cores of whatever is
    # timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    source = file if isinstance(file, bytes) else str(file)
    try:
        session = ort.InferenceSession(source, options, providers=[provider])
    except Exception as cause:
        raise ExportError(
            f"ONNX Runtime cannot load the network ({reason(cause)}). Run it in another runtime, "
            "or with dtype=float32"
        ) from cause
    halved = {i.name for i in session.get_inputs() if i.type == "tensor(float16)"}
    names = [i.name for i in session.get_inputs()]
    fixed = {name: _cast(array, name in halved) for name, array in feeds.items() if name in names}

    def run() -> Any:
        return session.run(None, fixed)

    def on(arrays: Sequence[Array]) -> list[Array]:
        # An input that nothing reads may have been optimised away.
        given = {
            name: _cast(array, name in halved)
            for name, array in zip(feeds, arrays, strict=True)
            if name in names
        }
        return [widened(output) for output in session.run(None, given)]

    return Prepared(runtime, run, on)


def provider_of(runtime: Runtime) -> str:
    """Name what runs the kernels on a runtime's device.

    Raises:
        ConfigError: ONNX Runtime is not installed, or not for this device.
    """
    ort = required("onnxruntime", "onnx")
    provider = _PROVIDERS[runtime.device.partition(":")[0]]
    if provider not in ort.get_available_providers():
        raise ConfigError(
            f"this ONNX Runtime has no {provider}: it has "
            f"{', '.join(ort.get_available_providers())}. Install the one for your device "
            "(onnxruntime-gpu), or use device=cpu"
        )
    return provider


def _cast(array: Array, half: bool) -> Array:
    return np.ascontiguousarray(array, np.float16 if half else None)
