"""The masked model: every removed slice is zero, every shape as it was."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from prunella.errors import PlanMismatchError
from prunella.masking.slicing import zero_removed
from prunella.masking.spectral import estimates_cut, settle
from prunella.model.modes import copied
from prunella.model.structure import check_numbers, digest_of, tensors
from prunella.plan import Group, Groups, Plan, check_kind


def check_digest(model: nn.Module, plan: Plan) -> None:
    """Raise `PlanMismatchError` unless the plan was made for a model of this structure."""
    check_kind(plan, Plan)
    found = digest_of(model)
    if found != plan.digest:
        raise PlanMismatchError(
            f"the plan is for a model of structure {plan.digest}, `{type(model).__name__}` has "
            f"{found}: its parameters have other names or shapes. Use the plan with the model it "
            "was made for, before pruning"
        )


def mask(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a copy of the model with every removed slice set to zero, on all sides.

    A removed channel is zero where it is made and where it is used, so what lies between (a
    sigmoid, a batch norm) makes no difference: the outputs are those of the pruned model. Only
    where the network takes statistics over channels (`plan.marked`: a layer norm, a mean) do they
    differ: here over all channels, zeros included, in the pruned model over those it has. Spectral
    norms are those of what is kept.

    Args:
        model: The model the plan was made for; left untouched.
        plan: What to keep.

    Raises:
        PlanMismatchError: The plan is for another model.
    """
    check_digest(model, plan)
    check_numbers(model, "masking")
    masked = copied(model)
    apply_mask(masked, plan)
    settle(tensors(masked), estimates_cut(masked, plan.kept))
    return masked


@torch.no_grad()
def apply_mask(model: nn.Module, plan: Plan) -> None:
    """Set every removed slice of the model to zero, in place (after an optimizer step, say)."""
    found = tensors(model)
    for name, kept in plan.kept.items():
        zero_removed(found[name], kept)


@contextmanager
def zeroed(
    model: nn.Module, groups: Groups, removed: Mapping[str, Sequence[int]]
) -> Iterator[nn.Module]:
    """Zero some channels of a model for a while; on leaving, every bit is as before.

    Nothing that binds channels (rows that keep equally many) is asked for here.

    Args:
        model: The model the groups were found in.
        groups: Its groups.
        removed: Channels to zero, by group name.
    """
    found = tensors(model)
    touched = [axis.tensor for name in removed for axis in groups[name].axes]
    estimates = estimates_cut(model, touched)
    names = {*touched, *(name for each in estimates for name in (each.left, each.right))}
    saved = {name: found[name].clone() for name in names}
    try:
        with torch.no_grad():
            for name, channels in removed.items():
                for view in slices(found, groups, groups[name], channels):
                    view.zero_()
        settle(found, estimates)
        torch.clear_autocast_cache()  # the caller's autocast would go on with what it has cast
        yield model
    finally:
        with torch.no_grad():
            for name, tensor in saved.items():
                found[name].copy_(tensor)
        torch.clear_autocast_cache()


def slices(
    found: Mapping[str, Tensor], groups: Groups, group: Group, channels: Sequence[int]
) -> Iterator[Tensor]:
    """Yield a view of every slice that belongs to some channels of a group."""
    for axis, positions in group.axes.items():
        tensor = found[axis.tensor]
        number = groups.axes[axis]
        for position in positions[list(channels)].reshape(-1).tolist():
            if number.ndim == 1:
                yield tensor.select(axis.dim, position)
            else:
                blocks, size = number.shape
                rows = tensor.chunk(blocks)[position // size]
                yield rows.select(axis.dim, position % size)
