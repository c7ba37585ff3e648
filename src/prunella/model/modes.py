"""Borrow a model for a moment and hand it back as it came; copy one as it is."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from prunella.model.structure import has_memory


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put `model` in evaluation mode; on leaving, it and torch's random numbers are as before.

    Every module has its own flag again and every buffer its bits (`buffers_kept`), and the
    caller's random numbers go on where they were, whatever the model drew.
    """
    flags = {module: module.training for module in model.modules()}
    cuda = {t.device.index for t in model.parameters() if t.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(cuda)), buffers_kept(model):
        model.eval()
        try:
            yield model
        finally:
            for module, training in flags.items():
                module.training = training


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Undo what a forward writes into buffers, in any mode: calls it counts, what it remembers.

    A buffer may be written to, replaced, resized or first made. One that was moved to another
    device or type meanwhile, by whoever moved the model, stays there.
    """
    saved = [(module, dict(module._buffers)) for module in model.modules()]
    values = {
        id(buffer): buffer.detach().clone()
        for _, buffers in saved
        for buffer in buffers.values()
        if _has_numbers(buffer)
    }
    try:
        yield
    finally:
        with torch.no_grad():
            for module, buffers in saved:
                now = dict(module._buffers)
                module._buffers.clear()
                for name, buffer in buffers.items():
                    module._buffers[name] = _put_back(buffer, now.get(name), values)


def _has_numbers(buffer: Tensor | None) -> TypeGuard[Tensor]:
    return (
        buffer is not None
        and not is_lazy(buffer)
        and buffer.layout == torch.strided
        and has_memory(buffer)
    )


def _put_back(
    before: Tensor | None, now: Tensor | None, values: Mapping[int, Tensor]
) -> Tensor | None:
    """Return the buffer that was there, or what it was moved to, with the numbers it had."""
    if before is None or id(before) not in values:
        return before
    moved = now is not None and (now.device, now.dtype) != (before.device, before.dtype)
    value = values[id(before)]
    kept = now if now is not None and moved and not now.is_meta else before
    value = value.to(kept)
    if kept.shape != value.shape:
        kept.data = value
    elif not torch.equal(kept, value):  # else it would count as written to
        kept.copy_(value)
    return kept


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Keep torch's attention from calling one operator that hides its products.

    It does so in evaluation mode, but not with an odd number of heads, say.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def forget(model: nn.Module) -> None:
    """Empty what modules keep of earlier runs: tensors in other sizes, or of another precision."""
    for module in model.modules():
        for name, value in vars(module).items():
            if type(value) is dict and "cache" in name and not name.startswith("_"):
                value.clear()


def copied(model: nn.Module, instead: Mapping[int, Tensor] | None = None) -> nn.Module:
    """Copy a model, also one that kept what it computed with gradients, which torch refuses.

    Args:
        model: Any module.
        instead: By a tensor's `id`, what the copy has in its place.
    """
    memo: dict[int, Tensor] = dict(instead or {})
    for module in model.modules():
        for value in vars(module).values():
            for item in _items(value):
                if isinstance(item, Tensor) and item.grad_fn is not None:
                    memo[id(item)] = item.detach().clone()
    return copy.deepcopy(model, memo)


def _items(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value
    else:
        yield value
