"""Runs in OpenVINO, in a compiled model of its own."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunella.errors import ConfigError, ExportError
from prunella.runtimes.converting import reason
from prunella.runtimes.prepared import Array, Prepared, widened
from prunella.runtimes.runtime import Runtime, required

_TELEMETRY = "openvino_telemetry"
_PRECISION = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_CAPABILITY = {"float32": "FP32", "bfloat16": "BF16", "float16": "FP16"}


def openvino() -> Any:
    """Import OpenVINO without its telemetry.

    By itself it reports every import to its makers, from a thread of its own. Who wants that can
    import it first.
    """
    silenced = "openvino" not in sys.modules and _TELEMETRY not in sys.modules
    if silenced:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # Python's way to say: absent
    try:
        return required("openvino", "openvino")
    finally:
        if silenced:
            del sys.modules[_TELEMETRY]


def load(file: Path | bytes, feeds: dict[str, Array], runtime: Runtime) -> Prepared:
    """Load an ONNX file or an OpenVINO one, or ONNX in memory, with inputs in place."""
    core = openvino().Core()
    device = device_of(runtime)
    # Said in so many words: by default it computes in bfloat16 where the machine has that.
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": _PRECISION[runtime.dtype],
        "PERFORMANCE_HINT": "LATENCY",
    }
    if runtime.threads is not None:
        settings["INFERENCE_NUM_THREADS"] = runtime.threads
    source = file if isinstance(file, bytes) else str(file)
    try:
        compiled = core.compile_model(core.read_model(source), device, settings)
        request = compiled.create_infer_request()
    except Exception as cause:
        raise ExportError(
            f"OpenVINO cannot load the network ({reason(cause)}). Run it in another runtime"
        ) from cause
    known = {name: index for index, port in enumerate(compiled.inputs) for name in port.names}
    fixed = {known[name]: array for name, array in feeds.items() if name in known}

    def run() -> Any:
        return request.infer(fixed, share_inputs=True, share_outputs=True)

    def on(arrays: Sequence[Array]) -> list[Array]:
        given = {
            known[name]: array for name, array in zip(feeds, arrays, strict=True) if name in known
        }
        found = request.infer(given)
        return [widened(found[port]) for port in compiled.outputs]

    return Prepared(runtime, run, on)


def device_of(runtime: Runtime) -> str:
    """Name a runtime's device as OpenVINO does.

    Raises:
        ConfigError: OpenVINO is not installed, or has no such device, or not in this precision.
    """
    core = openvino().Core()
    device = runtime.device.upper().replace(":", ".")
    if device.partition(".")[0] not in {name.partition(".")[0] for name in core.available_devices}:
        raise ConfigError(
            f"OpenVINO sees no device `{runtime.device}` on this machine: it sees "
            f"{', '.join(core.available_devices)}. Use device=cpu"
        )
    capable = core.get_property(device, "OPTIMIZATION_CAPABILITIES")
    if _CAPABILITY[runtime.dtype] not in capable:
        raise ConfigError(
            f"OpenVINO cannot compute in {runtime.dtype} on this {runtime.device}: it can in "
            f"{', '.join(capable)}. Use dtype=float32"
        )
    return device
