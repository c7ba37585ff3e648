"""Sums, means and searches along dimensions."""

from collections.abc import Callable

import torch
from torch import Tensor

from prunella.onnxfiles.numbers import Operand, UnreadError, as_tensor, numbers
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


def _search(function: Callable[[Tensor, int, bool], Tensor]) -> Callable[..., Tensor]:
    def search(call: Call, x: Operand) -> Tensor:
        if call.get("select_last_index", 0):
            raise UnreadError("it asks for the last of several places")
        return function(as_tensor(x), call.get("axis", 0), bool(call.get("keepdims", 1)))

    return search


reads("ArgMax")(_search(torch.argmax))
reads("ArgMin")(_search(torch.argmin))


@reads("TopK")
def top(call: Call, x: Operand, count: Operand = None) -> tuple[Tensor, ...]:
    """Take the largest along a dimension, and tell where they were; of equal ones the first."""
    k = call.get("k") if count is None else numbers(count, "count")[0]
    axis, largest = call.get("axis", -1), bool(call.get("largest", 1))
    values, places = torch.sort(as_tensor(x), stable=True, dim=axis, descending=largest)
    return values.narrow(axis, 0, k), places.narrow(axis, 0, k)


@reads("CumSum")
def running_sum(call: Call, x: Operand, axis: Operand) -> Tensor:
    """Add up along a dimension."""
    value, dim = as_tensor(x), numbers(axis, "axis")[0]
    value = value.flip(dim) if call.get("reverse", 0) else value
    made = value.cumsum(dim, dtype=value.dtype)
    made = made - value if call.get("exclusive", 0) else made
    return made.flip(dim) if call.get("reverse", 0) else made
