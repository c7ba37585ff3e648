"""A parameter as rows: what it has at each position of one of its axes."""

import torch
from torch import Tensor

from prunella.plan import Axis, Groups


def rows_of(tensor: Tensor, groups: Groups, axis: Axis) -> Tensor:
    """Return a matrix `[positions, elements]`, a view if can be.

    Where every conv group has columns of its own, positions count through all of them.
    """
    rows = [_rows(part, axis.dim) for part in _parts(tensor, groups, axis)]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def sums_of(tensor: Tensor, groups: Groups, axis: Axis) -> Tensor:
    """Return the sum of each row, `[positions]`."""
    others = [dim for dim in range(tensor.ndim) if dim != axis.dim]
    parts = _parts(tensor, groups, axis)
    return torch.cat([part.sum(others) if others else part for part in parts])


def _parts(tensor: Tensor, groups: Groups, axis: Axis) -> tuple[Tensor, ...]:
    number = groups.axes[axis]
    return tensor.chunk(number.shape[0]) if number.ndim == 2 else (tensor,)


def _rows(tensor: Tensor, dim: int) -> Tensor:
    # Without dimensions of size 1 most weights are matrices, which are transposed much faster.
    single = tuple(d for d, n in enumerate(tensor.shape) if n == 1 and d != dim)
    narrow = tensor.squeeze(single).movedim(dim - sum(d < dim for d in single), 0)
    return narrow.contiguous().reshape(len(narrow), -1)
