"""Runs in torch: eager, or compiled by inductor."""

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunella.errors import ExportError
from prunella.model.devices import device_named
from prunella.model.modes import copied
from prunella.model.outputs import tensors_in
from prunella.model.structure import tensors
from prunella.runtimes.converting import reason
from prunella.runtimes.flattening import form_of
from prunella.runtimes.prepared import Array, Prepared
from prunella.runtimes.runtime import Runtime


def prepare_torch(
    model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None, runtime: Runtime
) -> Prepared:
    """Prepare a model for torch; it shares the model's tensors where dtype and device allow."""
    device, dtype = device_of(runtime), getattr(torch, runtime.dtype)
    # A copy in structure: the user's model keeps its mode, and its tensors are not held twice.
    ours = copied(model, {id(t): t for t in tensors(model).values()}).eval()
    held = [t for t in tensors(ours).values() if t.is_floating_point()]
    if any(t.dtype != dtype for t in held) or any(t.device != device for t in held):
        ours = copied(model).eval().to(device=device, dtype=dtype)
    return in_torch(ours, args, kwargs, runtime)


def in_torch(
    model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None, runtime: Runtime
) -> Prepared:
    """Prepare a module that is in evaluation mode, and where and in what it shall run."""
    device, dtype = device_of(runtime), getattr(torch, runtime.dtype)
    form = form_of(model, args, kwargs)
    positional, named = form.arguments([_cast(t, device, dtype) for t in form.example])
    call: Callable[..., Any] = model
    if runtime.name == "torch-compile":
        call = _compiled(model)

    def run() -> Any:
        with threads_set(runtime.threads), torch.inference_mode():
            outputs = call(*positional, **named)
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            return outputs

    def on(arrays: Sequence[Array]) -> list[Array]:
        given = [_cast(torch.from_numpy(a), device, dtype) for a in arrays]
        with threads_set(runtime.threads), torch.inference_mode():
            args, kwargs = form.arguments(given)
            return [_array(t) for t in tensors_in(call(*args, **kwargs))]

    if runtime.name == "torch-compile":
        _first_run(run, type(model).__name__)
    return Prepared(runtime, run, on)


@contextmanager
def threads_set(threads: int | None) -> Iterator[None]:
    """Compute with so many threads; afterwards with as many as before."""
    before = torch.get_num_threads()
    try:
        if threads is not None and threads != before:
            torch.set_num_threads(threads)
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def _compiled(model: nn.Module) -> Callable[..., Any]:
    """Compile a model under a code object of its own.

    Dynamo keeps what it compiled by code object, and gives up in silence after eight versions of
    one: the ninth pruned network of one class would run eager.
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    own = types.FunctionType(
        forward.__code__.replace(), forward.__globals__, forward.__name__, None, forward.__closure__
    )
    compiled: Callable[..., Any] = torch.compile(own, dynamic=False)
    return compiled


def _first_run(run: Callable[[], Any], name: str) -> None:
    try:
        run()
    except Exception as cause:
        raise ExportError(
            f"torch.compile cannot compile `{name}` ({reason(cause)}). It needs a C++ compiler; "
            "the runtime `torch` needs none"
        ) from cause


def device_of(runtime: Runtime) -> torch.device:
    """Return a runtime's device.

    Raises:
        ConfigError: torch sees none.
    """
    device = device_named(runtime.device)
    if device.type != "cpu" and device.index is None:
        return torch.device(device.type, torch.accelerator.current_device_index())
    return device


def _cast(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)


def _array(tensor: Tensor) -> Array:
    wide = tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
    array: Array = wide.cpu().numpy()
    return array
