"""Look-ups and writes by index."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunella.onnxfiles.numbers import Host, Operand, UnreadError, as_tensor, numbers
from prunella.onnxfiles.operators._registry import Call, reads


@reads("Gather")
def gather(call: Call, x: Operand, at: Operand) -> Tensor:
    """Pick along one dimension; what is picked keeps the shape of the index."""
    value, axis = as_tensor(x), call.get("axis", 0)
    axis = axis + value.ndim if axis < 0 else axis
    if isinstance(at, Host) and not at.shape:
        return value.select(axis, at.values[0])
    if isinstance(at, Host):
        run = [int(i) for i in at.values]
        if run == list(range(run[0], run[0] + len(run))) and run[0] >= 0:
            whole: list[Any] = [slice(None)] * value.ndim
            whole[axis] = slice(run[0], run[0] + len(run))
            return value[tuple(whole)]
    index = as_tensor(at)
    if isinstance(x, nn.Parameter) and axis == 0 and value.ndim == 2 and index.ndim:
        return F.embedding(_counted(index, value, 0), value)
    if index.ndim == 0:
        return value.index_select(axis, _counted(index, value, axis).reshape(1)).squeeze(axis)
    return value[(slice(None),) * axis + (_counted(index, value, axis),)]


def _counted(index: Tensor, value: Tensor, axis: int) -> Tensor:
    """Count what is counted from the end from the start."""
    return torch.where(index < 0, index + int(value.shape[axis]), index).long()


@reads("GatherElements")
def gather_elements(call: Call, x: Operand, at: Operand) -> Tensor:
    """Pick along one dimension, elsewhere for every place in the others."""
    value, axis = as_tensor(x), call.get("axis", 0)
    return torch.gather(value, axis, _counted(as_tensor(at), value, axis))


@reads("GatherND")
def gather_nd(call: Call, x: Operand, at: Operand) -> Tensor:
    """Pick by several indices at once."""
    if call.get("batch_dims", 0):
        raise UnreadError("it picks in batches")
    value, index = as_tensor(x), as_tensor(at)
    places = tuple(_counted(part, value, d) for d, part in enumerate(index.unbind(-1)))
    return value[places]


@reads("ScatterElements")
def scatter_elements(call: Call, x: Operand, at: Operand, updates: Operand) -> Tensor:
    """Write along one dimension."""
    if call.get("reduction", "none") != "none":
        raise UnreadError("it adds to what it writes over")
    value, axis = as_tensor(x), call.get("axis", 0)
    return value.scatter(axis, _counted(as_tensor(at), value, axis), as_tensor(updates))


@reads("ScatterND")
def scatter_nd(call: Call, x: Operand, at: Operand, updates: Operand) -> Tensor:
    """Write by several indices at once."""
    if call.get("reduction", "none") != "none":
        raise UnreadError("it adds to what it writes over")
    value, index = as_tensor(x), as_tensor(at)
    places = tuple(_counted(part, value, d) for d, part in enumerate(index.unbind(-1)))
    return value.index_put(places, as_tensor(updates))


@reads("OneHot")
def one_hot(call: Call, at: Operand, depth: Operand, values: Operand) -> Tensor:
    """Put one number at the index, another elsewhere."""
    if call.get("axis", -1) != -1:
        raise UnreadError("its new dimension is not the last")
    size = int(numbers(depth, "depth")[0])
    off, on = as_tensor(values).unbind(0)
    index = as_tensor(at).long()
    hot = (index % size)[..., None] == torch.arange(size)
    return torch.where(hot, on, off)
