"""Borrow a model for a moment and hand it back as it came; copy one as it is."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import CellType, FunctionType
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from prunella.model.structure import check_model, has_memory


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put `model` in evaluation mode; on leaving, it and torch's random numbers are as before.

    Every module has its own flag again and every buffer its bits (`buffers_kept`), and the
    caller's random numbers go on where they were, whatever the model drew.
    """
    check_model(model)
    flags = {module: module.training for module in model.modules()}
    held = (*model.parameters(), *model.buffers())
    cuda = {tensor.device.index for tensor in held if tensor.device.type == "cuda"}
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

    A buffer may be written to, replaced, resized or first made. The module's other attributes then
    go back with it, as they may say that it is there, or how long it is. One that was moved to
    another device or type meanwhile, by whoever moved the model, stays there.
    """
    saved = [
        _Saved(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()
    ]
    values = {
        id(buffer): buffer.detach().clone()
        for one in saved
        for buffer in one.buffers.values()
        if _has_numbers(buffer)
    }
    try:
        yield
    finally:
        # Two modules may share a buffer: all are looked at before the first is put back.
        for one in [one for one in saved if _is_changed(one, values)]:
            _put_back(one, values)


class _Saved(NamedTuple):
    """A module, and what it held."""

    module: nn.Module
    attributes: dict[str, Any]
    buffers: dict[str, Tensor | None]


def _has_numbers(buffer: Tensor | None) -> TypeGuard[Tensor]:
    return (
        buffer is not None
        and not is_lazy(buffer)
        and not buffer.is_nested
        and buffer.layout == torch.strided
        and has_memory(buffer)
    )


def _is_changed(saved: _Saved, values: Mapping[int, Tensor]) -> bool:
    now = dict(saved.module._buffers)
    places = _places(saved, values)
    return (
        now.keys() != places.keys()
        or any(now[name] is not place for name, place in places.items())
        or any(not _holds(place, value) for place, value in _numbers(saved, places, values))
    )


def _put_back(saved: _Saved, values: Mapping[int, Tensor]) -> None:
    module, places, now = saved.module, _places(saved, values), dict(saved.module._buffers)
    with torch.no_grad():
        for place, value in _numbers(saved, places, values):
            if place.shape != value.shape:
                place.data = value.to(place)
            elif not _holds(place, value):  # else it would count as written to
                place.copy_(value)
    for name in vars(module).keys() - saved.attributes.keys():
        del vars(module)[name]
    vars(module).update(saved.attributes)
    # One by one: the buffers of a scripted module are no dict.
    for name in now.keys() - places.keys():
        del module._buffers[name]
    for name, buffer in places.items():
        if name not in now or now[name] is not buffer:
            module._buffers[name] = buffer


def _places(saved: _Saved, values: Mapping[int, Tensor]) -> dict[str, Tensor | None]:
    """Return the buffers that were there, or what they were moved to."""
    now = dict(saved.module._buffers)
    return {name: _moved(buffer, now.get(name), values) for name, buffer in saved.buffers.items()}


def _moved(
    before: Tensor | None, now: Tensor | None, values: Mapping[int, Tensor]
) -> Tensor | None:
    if before is None or now is None or now.is_meta or id(before) not in values:
        return before
    return now if (now.device, now.dtype) != (before.device, before.dtype) else before


def _numbers(
    saved: _Saved, places: Mapping[str, Tensor | None], values: Mapping[int, Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the buffers that had numbers, and these."""
    for name, place in places.items():
        value = values.get(id(saved.buffers[name]))
        if place is not None and value is not None:
            yield place, value


def _holds(buffer: Tensor, value: Tensor) -> bool:
    return buffer.shape == value.shape and torch.equal(buffer, value.to(buffer))


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

    Hooks that its code made as functions enclose the copy in place of the model.

    Args:
        model: Any module.
        instead: By a tensor's `id`, what the copy has in its place.
    """
    memo: dict[int, Any] = dict(instead or {})
    for module in model.modules():
        for value in vars(module).values():
            for item in _items(value):
                if isinstance(item, Tensor) and item.grad_fn is not None:
                    memo[id(item)] = item.detach().clone()
    made = copy.deepcopy(model, memo)
    for module in made.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in hooks.items():
                hooks[key] = _following(hook, memo)
    return made


def _following(hook: Any, memo: Mapping[int, Any]) -> Any:
    """Return a copied model's hook, which is to note what it sees there and not in the original.

    A function is copied as it is, with what it encloses and what its arguments are by default.
    """
    if not isinstance(hook, FunctionType):
        return hook
    cells = [(cell, _enclosed(cell)) for cell in hook.__closure__ or ()]
    given = hook.__defaults__ or ()
    if not any(id(item) in memo for item in (*given, *(item for _, item in cells))):
        return hook
    inner = tuple(CellType(memo[id(a)]) if id(a) in memo else cell for cell, a in cells)
    default = tuple(memo.get(id(item), item) for item in given)
    made = FunctionType(hook.__code__, hook.__globals__, hook.__name__, default, inner)
    made.__kwdefaults__ = hook.__kwdefaults__
    return made


def _enclosed(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing was assigned yet
        return None


def _items(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value
    else:
        yield value
