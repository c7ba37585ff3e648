"""Score every channel of every group: `score(model, groups, criterion) -> Scores`."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from prunella.criteria import CRITERIA, Criterion
from prunella.errors import ConfigError, PlanMismatchError
from prunella.plan import Group, Groups, Scores, nearest
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
    if isinstance(criterion, str):
        if criterion not in CRITERIA:
            raise ConfigError(
                f"no criterion called {criterion!r}{nearest(criterion, CRITERIA)}; there are "
                f"{', '.join(CRITERIA)}"
            )
        name, criterion = criterion, CRITERIA[criterion]
    else:
        name = type(criterion).__name__.lower()
    if digest_of(model) != groups.graph.digest:
        raise PlanMismatchError(
            f"the groups were found in another model than this `{type(model).__name__}`; "
            "trace and couple it again"
        )
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        values = {
            group.name: _values(criterion(_slices(parameters, groups, group)), group)
            for group in groups
        }
    return Scores(name, values)


def _slices(parameters: Mapping[str, Tensor], groups: Groups, group: Group) -> list[Tensor]:
    """Return one matrix `[channels, elements]` for every parameter axis of the group."""
    found = []
    for axis, positions in group.axes.items():
        if axis.tensor in parameters:
            tensor = parameters[axis.tensor].detach()
            number = groups.axes[axis]
            parts = tensor.chunk(number.shape[0]) if number.ndim == 2 else (tensor,)
            rows = [_rows(part, axis.dim) for part in parts]
            picked = rows[0] if len(rows) == 1 else torch.cat(rows)
            if not np.array_equal(positions.reshape(-1), np.arange(len(picked))):
                picked = picked[torch.from_numpy(positions).to(picked.device)]
            found.append(picked.reshape(group.channels, -1).float())
    return found or [torch.ones(group.channels, 1)]


def _rows(tensor: Tensor, dim: int) -> Tensor:
    """Return a matrix with the elements at each position of a dimension, a view if can be."""
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
