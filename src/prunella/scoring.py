"""Score every channel of every group: `score(model, groups, criterion) -> Scores`."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from prunella.criteria import CRITERIA, Criterion, Member
from prunella.errors import ConfigError, PlanMismatchError
from prunella.plan import Axis, Group, Groups, Scores, nearest
from prunella.roles import Role, roles_of
from prunella.structure import digest_of


def score(model: nn.Module, groups: Groups, criterion: str | Criterion = "magnitude") -> Scores:
    """Score the importance of every channel.

    Args:
        model: The model the groups were found in.
        groups: Its groups.
        criterion: A name from `prunella.criteria.CRITERIA`, or a criterion of your own.

    Returns:
        A float per channel, higher = keep; comparable within a group.

    Raises:
        ConfigError: No criterion of that name.
        PlanMismatchError: The groups are of another model.
    """
    name, criterion = _chosen(criterion)
    if digest_of(model) != groups.graph.digest:
        raise PlanMismatchError(
            f"the groups were found in another model than this `{type(model).__name__}`; "
            "trace and couple it again"
        )
    parameters = dict(model.named_parameters())
    roles = roles_of(groups.graph)
    with torch.no_grad():
        values = {
            group.name: _values(criterion(_members(parameters, groups, group, roles)), group)
            for group in groups
        }
    return Scores(name, values)


def _chosen(criterion: str | Criterion) -> tuple[str, Criterion]:
    if not isinstance(criterion, str):
        return getattr(criterion, "__name__", type(criterion).__name__.lower()), criterion
    if criterion not in CRITERIA:
        raise ConfigError(
            f"no criterion called {criterion!r}{nearest(criterion, CRITERIA)}; there are "
            f"{', '.join(CRITERIA)}"
        )
    return criterion, CRITERIA[criterion]


def _members(
    parameters: Mapping[str, Tensor], groups: Groups, group: Group, roles: Mapping[Axis, Role]
) -> list[Member]:
    """Return what the group's channels have on every parameter axis."""
    found = []
    for axis, positions in group.axes.items():
        if axis.tensor in parameters:
            rows = rows_of(parameters[axis.tensor].detach(), groups, axis)
            if not np.array_equal(positions.reshape(-1), np.arange(len(rows))):
                rows = rows[torch.from_numpy(positions).to(rows.device)]
            weight = rows.reshape(group.channels, -1).float()
            found.append(Member(axis, roles.get(axis, "scales"), weight))
    return found or [Member(Axis("", 0), "scales", torch.ones(group.channels, 1))]


def rows_of(tensor: Tensor, groups: Groups, axis: Axis) -> Tensor:
    """Return a matrix with what a tensor has at each position of an axis, a view if can be."""
    number = groups.axes[axis]
    parts = tensor.chunk(number.shape[0]) if number.ndim == 2 else (tensor,)
    rows = [_rows(part, axis.dim) for part in parts]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _rows(tensor: Tensor, dim: int) -> Tensor:
    # Without dimensions of size 1 most weights are matrices, which are transposed much faster.
    single = tuple(d for d, n in enumerate(tensor.shape) if n == 1 and d != dim)
    narrow = tensor.squeeze(single).movedim(dim - sum(d < dim for d in single), 0)
    return narrow.contiguous().reshape(len(narrow), -1)


def _values(scores: Tensor, group: Group) -> np.ndarray:
    if scores.shape != (group.channels,) or not bool(scores.isfinite().all()):
        raise ConfigError(
            f"a criterion returns one finite score per channel; for {group.name!r} with "
            f"{group.channels} channels it returned {tuple(scores.shape)}"
            f"{'' if scores.isfinite().all() else ' with NaN or infinite values'}"
        )
    return scores.double().cpu().numpy()
