"""Apply a plan's kept indices to tensors: take what is kept, or zero what is not."""

from collections.abc import Mapping

import torch
from torch import Tensor

from prunella.plan import Indices, Plan


def cut(tensor: Tensor, plan: Plan, name: str) -> Tensor:
    """Return a copy of the model's tensor of that name as the pruned model has it."""
    made = take(tensor, plan.kept.get(name, {}))
    for dim, factors in (plan.factors or {}).get(name, {}).items():
        wide = [-1 if d == dim else 1 for d in range(made.ndim)]
        made *= torch.tensor(factors, dtype=made.dtype, device=made.device).view(wide)
    return made


def take(tensor: Tensor, kept: Mapping[int, Indices]) -> Tensor:
    """Return a copy of `tensor` with only the kept indices of every dimension.

    Rows (dimension 0) go first. Where dimension 1 has one list per conv group, the remaining rows
    are shared out evenly over the conv groups, and each takes its own columns.
    """
    for dim in sorted(kept):
        indices = torch.tensor(kept[dim], dtype=torch.int64, device=tensor.device)
        if indices.ndim == 1:
            tensor = tensor.index_select(dim, indices)
        else:
            parts = zip(tensor.chunk(len(indices)), indices, strict=True)
            tensor = torch.cat([part.index_select(dim, own) for part, own in parts])
    # What was selected is a copy already.
    return tensor.contiguous() if kept else tensor.clone(memory_format=torch.contiguous_format)


def zero_removed(tensor: Tensor, kept: Mapping[int, Indices]) -> None:
    """Set every element that `take` would leave out to zero, in place."""
    for dim, indices in kept.items():
        found = torch.tensor(indices, device=tensor.device)
        if found.ndim == 1:
            gone = torch.ones(tensor.shape[dim], dtype=torch.bool, device=tensor.device)
            gone[found] = False
            tensor.index_fill_(dim, gone.nonzero().reshape(-1), 0)
            continue
        for part, own in zip(tensor.chunk(len(found)), found, strict=True):
            gone = torch.ones(tensor.shape[dim], dtype=torch.bool, device=tensor.device)
            gone[own] = False
            part.index_fill_(dim, gone.nonzero().reshape(-1), 0)
