"""Sums, means and searches along dimensions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prunella.onnxfiles.numbers import Operand, as_tensor, numbers
from prunella.onnxfiles.operators._registry import OPERATORS, Call, reads
from prunella.onnxfiles.operators.movement import axes_of


def _largest(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    return torch.amax(x, dims, keep)


def _product(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    for dim in sorted(dims, reverse=True):
        x = torch.prod(x, dim, keep)
    return x


_REDUCE: dict[str, Callable[[Tensor, tuple[int, ...], bool], Tensor]] = {
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
    "ReduceMax": _largest,
    "ReduceMin": torch.amin,
    "ReduceProd": _product,
    "ReduceL1": lambda x, dims, keep: x.abs().sum(dims, keep),
    "ReduceL2": lambda x, dims, keep: x.square().sum(dims, keep).sqrt(),
    "ReduceSumSquare": lambda x, dims, keep: x.square().sum(dims, keep),
    "ReduceLogSum": lambda x, dims, keep: x.sum(dims, keep).log(),
    "ReduceLogSumExp": torch.logsumexp,
}


def _reading(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Callable[..., Tensor]:
    def reduce(call: Call, x: Operand, *rest: Operand) -> Tensor:
        value, axes = as_tensor(x), axes_of(call, rest, 0)
        if not axes and call.get("noop_with_empty_axes", 0):
            return value
        dims = tuple(a % value.ndim for a in axes) if axes else tuple(range(value.ndim))
        return function(value, dims, bool(call.get("keepdims", 1)))

    return reduce


for _name, _function in _REDUCE.items():
    OPERATORS[_name] = _reading(_function)


@reads("ArgMax")
def arg_max(call: Call, x: Operand) -> Tensor:
    """Tell where the largest is."""
    return torch.argmax(as_tensor(x), call.get("axis", 0), bool(call.get("keepdims", 1)))


@reads("ArgMin")
def arg_min(call: Call, x: Operand) -> Tensor:
    """Tell where the smallest is."""
    return torch.argmin(as_tensor(x), call.get("axis", 0), bool(call.get("keepdims", 1)))


@reads("TopK")
def top(call: Call, x: Operand, count: Operand = None) -> tuple[Tensor, ...]:
    """Take the largest along a dimension, and tell where they were."""
    k = call.get("k") if count is None else numbers(count, "count")[0]
    found: Any = torch.topk(
        as_tensor(x),
        k,
        call.get("axis", -1),
        bool(call.get("largest", 1)),
        bool(call.get("sorted", 1)),
    )
    return found[0], found[1]


@reads("CumSum")
def running_sum(call: Call, x: Operand, axis: Operand) -> Tensor:
    """Add up along a dimension."""
    value, dim = as_tensor(x), numbers(axis, "axis")[0]
    value = value.flip(dim) if call.get("reverse", 0) else value
    made = value.cumsum(dim)
    made = made - value if call.get("exclusive", 0) else made
    return made.flip(dim) if call.get("reverse", 0) else made
