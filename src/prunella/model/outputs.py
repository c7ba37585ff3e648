"""Find the tensors in whatever a model returns, and put others in their place."""

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

_HALF = {torch.float16, torch.bfloat16}


def tensors_in(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of an output: in a tensor, tuple, list, dict or dataclass, however deep."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_in(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from tensors_in(value)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        for field in dataclasses.fields(output):
            yield from tensors_in(getattr(output, field.name))


def finite(output: Any) -> Tensor:
    """Tell, in a tensor on the output's device, whether all its numbers are finite.

    What cannot be told (sparse and nested tensors, floats of 8 bits) passes for finite.
    """
    found = [_is_finite(tensor) for tensor in tensors_in(output) if _has_extremes(tensor)]
    return (
        torch.stack([one.to(found[0].device) for one in found]).all()
        if found
        else torch.tensor(True)
    )


def in_float32(output: Any) -> Any:
    """Return an output with float32 in place of the half precisions; it stays what it was."""
    if not any(tensor.dtype in _HALF for tensor in tensors_in(output)):
        return output
    return changed(output, lambda t: t.float() if t.dtype in _HALF else t)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def changed(
    value: Any, change: Callable[[Any], Any], is_leaf: Callable[[Any], bool] = _is_tensor
) -> Any:
    """Return a value with others in place of its tensors; the value itself stays what it was.

    Containers are of the classes they were, with what else they carry; a mapping that is neither a
    `dict` nor a `UserDict` becomes a dict, as a copy of it may share what it holds.

    Args:
        value: A tensor, or a tuple, list, mapping or dataclass with tensors, however deep.
        change: Gives what takes a tensor's place.
        is_leaf: What counts as one.
    """
    if is_leaf(value):
        return change(value)
    if isinstance(value, Mapping):
        parts = {key: changed(part, change, is_leaf) for key, part in value.items()}
        if not isinstance(value, dict | UserDict):
            return parts
        made = copy.copy(value)
        for key, part in parts.items():
            made[key] = part
        return made
    if isinstance(value, tuple | list):
        items = [changed(part, change, is_leaf) for part in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        like = copy.copy(value)
        for field in dataclasses.fields(value):
            part = changed(getattr(value, field.name), change, is_leaf)
            object.__setattr__(like, field.name, part)  # frozen ones too
        return like
    return value


def _is_finite(tensor: Tensor) -> Tensor:
    # NaN is the extreme of all it is among. `isfinite().all()` is ten times as slow.
    real = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return torch.stack(real.detach().aminmax()).isfinite().all()


def _has_extremes(tensor: Tensor) -> bool:
    """Say whether there are numbers to look at; torch finds none in 8 bits, or in other layouts."""
    return (
        (tensor.is_floating_point() or tensor.is_complex())
        and tensor.element_size() > 1
        and not tensor.is_nested
        and tensor.layout == torch.strided
        and tensor.numel() > 0
    )
