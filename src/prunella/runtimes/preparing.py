"""Make a network ready to run: export, compile and load it, once."""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunella.errors import ConfigError
from prunella.model.modes import copied
from prunella.runtimes import in_onnxruntime, in_openvino, in_torch
from prunella.runtimes.converting import write_onnx
from prunella.runtimes.flattening import form_of
from prunella.runtimes.in_torch import prepare_torch
from prunella.runtimes.prepared import Array, Prepared
from prunella.runtimes.runtime import Runtime, required

if TYPE_CHECKING:
    from onnx import ModelProto

_FIND: Mapping[str, Callable[[Runtime], object]] = {
    "torch": in_torch.device_of,
    "torch-compile": in_torch.device_of,
    "onnxruntime": in_onnxruntime.provider_of,
    "openvino": in_openvino.device_of,
}
_LOAD = {"onnxruntime": in_onnxruntime.load, "openvino": in_openvino.load}


def available(runtime: Runtime | str) -> None:
    """See that a runtime can be had here, before anything that takes long is done for it.

    Args:
        runtime: A `Runtime` or its text form.

    Raises:
        ConfigError: It is not installed, or has no such device or dtype here.
    """
    runtime = Runtime.of(runtime)
    _FIND[runtime.name](runtime)
    if runtime.name in _LOAD:
        required("onnx", "onnx")
        required("onnxscript", "onnx")


def prepare(
    model: nn.Module,
    args: Tensor | tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    runtime: Runtime | str = "torch",
) -> Prepared:
    """Make a model ready to run in a runtime, in evaluation mode and on fixed inputs.

    The model is left as it is. For torch its tensors are shared where device and dtype allow.

    Args:
        model: Any module.
        args: One tensor or the positional arguments; their batch size is the one that is timed.
        kwargs: Keyword arguments.
        runtime: Where; a `Runtime` or its text form, e.g. "onnxruntime:threads=2".

    Raises:
        ConfigError: The runtime is not installed, or has no such device or dtype here.
        ExportError: The model cannot be exported or compiled for it.
    """
    runtime = Runtime.of(runtime)
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        raise ConfigError(
            "a model on the meta device computes nothing, so it cannot be run. Give it weights "
            "with `model.to_empty(device=...)` or load them"
        )
    if runtime.name in ("torch", "torch-compile"):
        return prepare_torch(model, args, kwargs, runtime)
    if runtime.name == "onnxruntime" and runtime.dtype == "float16":
        model = copied(model).half()
        args, kwargs = pytree.tree_map_only(Tensor, _halved, (args, dict(kwargs or {})))
    form = form_of(model, args, kwargs)
    arrays = [tensor.detach().cpu().numpy() for tensor in form.example]
    feeds = dict(zip(form.names, arrays, strict=True))
    folder = Path(tempfile.mkdtemp(prefix="prunella-"))
    try:
        write_onnx(model, args, kwargs, folder / "model.onnx")
        ready = _LOAD[runtime.name](folder / "model.onnx", feeds, runtime)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    # The runtime may go on reading large tensors from the file.
    closed = weakref.finalize(ready.run, shutil.rmtree, folder, ignore_errors=True)
    return replace(ready, close=closed)


def prepare_onnx(
    file: "str | Path | ModelProto", feeds: Mapping[str, Array], runtime: Runtime | str
) -> Prepared:
    """Make an ONNX model ready to run on fixed inputs.

    Args:
        file: A path, or the model in memory (below 2 GB).
        feeds: Arrays by the name of the input.
        runtime: "onnxruntime" or "openvino", with their options. Numbers have the types that they
            have in the model; `dtype` is what OpenVINO computes in.

    Raises:
        ConfigError: The runtime runs no ONNX, is not installed, or has no such device or dtype.
        ExportError: The runtime cannot load the model.
    """
    runtime = Runtime.of(runtime)
    if runtime.name not in _LOAD:
        raise ConfigError(
            f"the runtime `{runtime.name}` runs no ONNX file. Use `onnxruntime` or `openvino`"
        )
    source = Path(file) if isinstance(file, str | Path) else file.SerializeToString()
    return _LOAD[runtime.name](source, dict(feeds), runtime)


def _halved(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float16) if tensor.is_floating_point() else tensor
