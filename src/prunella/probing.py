"""Try which groups the model's own code lets us cut, where a size is written into that code.

A captured graph shows sizes as numbers, whether the code computes them from shapes or spells them
out (`x.view(-1, 400)`). So a model that does not run when pruned is tried group by group, and what
it does not survive is frozen, with the line where it fails.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from prunella.allocating import allocate
from prunella.blame import own_line
from prunella.counting import clusters
from prunella.errors import NothingToPruneError
from prunella.modes import evaluating
from prunella.plan import Frozen, Groups, Scores
from prunella.transforming import shrink


def runnable(
    model: nn.Module, groups: Groups, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Groups:
    """Freeze the groups without half of whose channels the model does not run.

    Costs one run of a pruned copy where all is well, one for each cluster of groups otherwise.

    Args:
        model: The model the groups were found in; left untouched.
        groups: Its groups.
        args: Positional inputs.
        kwargs: Keyword inputs.

    Returns:
        The same groups, or a copy with some of them among the frozen ones.
    """
    everything = [group.name for group in groups]
    if _failure(model, groups, everything, args, kwargs) is None:
        return groups
    reasons: dict[str, Frozen] = {}
    for cluster in clusters(groups):
        where = _failure(model, groups, cluster.groups, args, kwargs)
        if where is not None:
            why = Frozen(f"the model does not run with fewer channels{where}", "forward", "")
            reasons.update(dict.fromkeys(cluster.groups, why))
    return _freeze(groups, reasons)


def _failure(
    model: nn.Module,
    groups: Groups,
    names: list[str] | tuple[str, ...],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> str | None:
    """Return where the model fails with half of these groups' channels; None where it runs."""
    flat = Scores("none", {group.name: np.zeros(group.channels) for group in groups})
    try:
        pruned = shrink(model, allocate(groups, flat, dict.fromkeys(names, 0.5)))
    except NothingToPruneError:
        return None
    try:
        with evaluating(pruned), torch.no_grad():
            pruned(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - whatever the model's own code raises
        return own_line(error)
    return None


def _freeze(groups: Groups, reasons: Mapping[str, Frozen]) -> Groups:
    stuck = tuple(
        replace(group, frozen=(reasons[group.name],)) for group in groups if group.name in reasons
    )
    free = tuple(group for group in groups if group.name not in reasons)
    return replace(groups, prunable=free, frozen=(*groups.frozen, *stuck))
