"""Try which groups the model's own code lets us cut, where that could not be foreseen.

Where the numbers in the code come from is mostly known (`sizing`), but a code may leave integers
(`int(x * 0.5)`) or compute with sizes. So a model that does not run when pruned, or computes
something else than the masked one, is tried piece by piece, and what it does not survive is frozen,
with the line where it fails.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from prunella.allocating import allocate
from prunella.certifying import compare
from prunella.coupling.counting import clusters
from prunella.errors import CertificateError, NothingToPruneError, PrunellaError
from prunella.model.blame import first_line, own_line
from prunella.model.modes import evaluating
from prunella.plan import Frozen, Groups, Scores
from prunella.tracing.capturing import untouched
from prunella.transforming import smaller, with_scales


def faithful(
    model: nn.Module, groups: Groups, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Groups:
    """Freeze the groups without half of whose channels the model does not run, or not rightly.

    Clusters of groups are tried together and halved where they fail: a few runs for each culprit.

    Args:
        model: The model the groups were found in; left untouched.
        groups: Its groups.
        args: Positional inputs.
        kwargs: Keyword inputs.

    Returns:
        The same groups, or a copy with some of them among the frozen ones.
    """
    names = [cluster.groups for cluster in clusters(groups)]
    reasons: dict[str, Frozen] = {}

    def fails(found: list[tuple[str, ...]]) -> str | None:
        tried = [name for cluster in found for name in cluster if name not in reasons]
        return _failure(model, groups, tried, args, kwargs) if tried else None

    def search(found: list[tuple[str, ...]]) -> None:
        why = fails(found)
        if why is None:
            return
        if len(found) == 1:
            reasons.update(dict.fromkeys(found[0], Frozen(why, "forward", "")))
            return
        middle = len(found) // 2
        search(found[:middle])
        search(found[middle:])
        if fails(found) is not None:  # each half is right, but not both
            for cluster in found[middle:]:
                if fails([*found[:middle], cluster]) is not None:
                    reasons.update(dict.fromkeys(cluster, Frozen(why, "forward", "")))

    search(names)
    return _freeze(groups, reasons) if reasons else groups


def _failure(
    model: nn.Module,
    groups: Groups,
    names: list[str],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> str | None:
    """Say what goes wrong with half of these groups' channels; None where nothing does."""
    flat = Scores("none", {group.name: np.zeros(group.channels) for group in groups})
    try:
        plan = allocate(groups, flat, dict.fromkeys(names, 0.5))
        plan = with_scales(model, plan, groups, (args, dict(kwargs)))
        pruned = smaller(model, plan, groups, (args, dict(kwargs)))
    except NothingToPruneError:
        return None
    except PrunellaError as error:
        return first_line(error)
    try:
        with evaluating(pruned), untouched(pruned), torch.no_grad():
            pruned(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - whatever the model's own code raises
        return f"the model does not run with fewer channels{own_line(error)}"
    try:
        found = compare(model, pruned, plan, args, kwargs, groups)
    except CertificateError as error:
        return first_line(error)
    if found.holds:
        return None
    return f"with fewer channels the model computes something else (by {found.error:.1g})"


def _freeze(groups: Groups, reasons: Mapping[str, Frozen]) -> Groups:
    stuck = tuple(
        replace(group, frozen=(reasons[group.name],)) for group in groups if group.name in reasons
    )
    free = tuple(group for group in groups if group.name not in reasons)
    return replace(groups, prunable=free, frozen=(*groups.frozen, *stuck))
