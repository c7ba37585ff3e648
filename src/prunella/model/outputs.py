"""Find the tensors in whatever a model returns, and put others in their place."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, MutableMapping
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
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, Mapping):
        parts = {key: in_float32(value) for key, value in output.items()}
        if not isinstance(output, MutableMapping):
            return parts
        made = copy.copy(output)
        for key, value in parts.items():
            made[key] = value
        return made
    if isinstance(output, tuple | list):
        items = [in_float32(value) for value in output]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    made = copy.copy(output)
    for field in dataclasses.fields(output):
        object.__setattr__(made, field.name, in_float32(getattr(output, field.name)))  # frozen too
    return made


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
