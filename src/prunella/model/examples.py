"""Describe example inputs as plain data, and make random ones like them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prunella.model.outputs import tensors_in

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def samples_in(arguments: Any) -> int:
    """Count the samples in arguments: the rows of the largest tensor, however deep it is."""
    found = [tensor for tensor in tensors_in(arguments) if tensor.dim()]
    return max(found, key=Tensor.numel).shape[0] if found else 1


def describe(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Describe inputs in JSON's terms; None where one of them has no such description."""
    try:
        return {"args": [_describe(a) for a in args], "kwargs": _describe(dict(kwargs))}
    except TypeError:
        return None


def _describe(value: Any) -> Any:
    if isinstance(value, Tensor):
        normal = value.is_floating_point() or value.is_complex()
        exact = not normal and value.dtype != torch.bool
        known = exact and value.numel() > 0 and value.device.type != "meta"
        span = [int(value.min()), int(value.max())] if known else [0, 1]
        return {
            "tensor": list(value.shape),
            "dtype": str(value.dtype).removeprefix("torch."),
            "span": span,
        }
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if isinstance(value, tuple):
        return {"tuple": [_describe(item) for item in value]}
    if isinstance(value, list):
        return {"list": [_describe(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": {str(key): _describe(item) for key, item in value.items()}}
    raise TypeError(f"{type(value).__name__} has no description")


def make(example: Any, seed: int, device: torch.device | str = "cpu") -> Arguments:
    """Make random inputs from a description: normal floats, integers in the span once seen."""
    generator = torch.Generator().manual_seed(seed)
    args = tuple(_make(item, generator, device) for item in example["args"])
    return args, _make(example["kwargs"], generator, device)


def _make(item: Any, generator: torch.Generator, device: torch.device | str) -> Any:
    if "tensor" in item:
        dtype = getattr(torch, item["dtype"])
        if dtype.is_floating_point or dtype.is_complex:
            drawn = torch.cfloat if dtype.is_complex else None
            made = torch.randn(item["tensor"], generator=generator, dtype=drawn).to(dtype)
        else:
            low, high = item["span"]
            made = torch.randint(low, high + 1, item["tensor"], generator=generator).to(dtype)
        return made.to(device)
    if "value" in item:
        return item["value"]
    if "dict" in item:
        return {key: _make(part, generator, device) for key, part in item["dict"].items()}
    if "tuple" in item:
        return tuple(_make(part, generator, device) for part in item["tuple"])
    return [_make(part, generator, device) for part in item["list"]]
