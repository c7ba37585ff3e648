"""Decide how many channels each group loses, and which: groups + scores + budget -> `Plan`."""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import SupportsFloat

import numpy as np

from prunella.allocating.bill import Meters
from prunella.allocating.choosing import Chooser
from prunella.allocating.fitting import Room, fit, reachable, used_up, written
from prunella.allocating.levels import Damage, ladder
from prunella.allocating.multiples import MultipleOf, Multiples, multiples
from prunella.allocating.planning import make_plan, nothing_to_prune
from prunella.allocating.worthwhile import worthwhile
from prunella.costs.ladders import Ladder
from prunella.costs.memory import peak
from prunella.costs.timed import LatencyModel
from prunella.coupling.counting import Cluster
from prunella.errors import BudgetError, ConfigError, NothingToPruneError
from prunella.plan import Budget, Costs, Groups, Plan, Scores, check_kind, nearest

MaxRatio = float | Mapping[str, float]
"""The largest ratio of all groups, or one by group name; groups not named may lose anything."""

_NAMED = 5
_ROUNDING = 1e-6  # 1 - 0.8 is a little less than 0.2

log = logging.getLogger("prunella")


@dataclass(frozen=True)
class Allocation:
    """A plan, and how near it is to the best one.

    Attributes:
        plan: What is kept.
        damage: Predicted damage in all; None without predictions, or under a ratio.
        bound: No choice of levels within the budget does less; None where nothing is known.
        remarks: How good the choice is.
        warnings: What was asked and could not be had, as all groups within their largest ratio.
    """

    plan: Plan
    damage: float | None = None
    bound: float | None = None
    remarks: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def gap(self) -> float | None:
        """Return by which share of the damage a better choice could at most do less."""
        if self.damage is None or self.bound is None:
            return None
        return max(0.0, (self.damage - self.bound) / self.damage) if self.damage > 0 else 0.0


def allocate(
    groups: Groups,
    scores: Scores,
    target: Budget | float | Mapping[str, float],
    damage: Damage | None = None,
    *,
    multiple_of: MultipleOf = 1,
    max_ratio: MaxRatio = 1.0,
    latency_model: LatencyModel | None = None,
) -> Plan:
    """Choose the channels to keep, and log how good the choice is.

    Args:
        groups: The groups of a network.
        scores: Importance of every channel; the lowest go first.
        target: A `Budget` (what remains), or a ratio in [0, 1) of channels every group loses, or
            a ratio by group name (groups not named lose nothing).
        damage: Predicted loss of the metric by group and kept channels (`Sensitivity.damage`).
            With it, a budget is spent where the least damage is done in all; without, every group
            loses the same share.
        multiple_of: Every axis that is cut keeps a multiple of so many positions: one number, or
            one by group name. Any number of heads of 64 is a multiple of 8. Groups too small for
            that stay whole, and a warning names them.
        max_ratio: The largest ratio that groups lose under a budget, unless it cannot be kept
            otherwise (a warning names those that lose more): one number, or one by group name.
        latency_model: The network's time (`prunella.latency.profile`), for a budget on it.

    Returns:
        A plan. Under a budget its costs are at most the budget; of the latency that is said of what
        the model predicts.

    Raises:
        BudgetError: No plan fits; `reachable` is the smallest cost.
        NothingToPruneError: The plan would remove nothing.
        ConfigError: A ratio or multiple is out of range, or a group is unknown.
    """
    found = allocate_and_bound(
        groups,
        scores,
        target,
        damage,
        multiple_of=multiple_of,
        max_ratio=max_ratio,
        latency_model=latency_model,
    )
    return told(found)


def told(found: Allocation) -> Plan:
    """Log how good a choice is, and return its plan: for the one that is carried out."""
    for remark in found.remarks:
        log.info("%s", remark)
    for warning in found.warnings:
        log.warning("%s", warning)
    return found.plan


def allocate_and_bound(
    groups: Groups,
    scores: Scores,
    target: Budget | float | Mapping[str, float],
    damage: Damage | None = None,
    *,
    multiple_of: MultipleOf = 1,
    max_ratio: MaxRatio = 1.0,
    latency_model: LatencyModel | None = None,
) -> Allocation:
    """Choose the channels to keep, and return how near the choice is to the best one, unlogged.

    Arguments and errors are those of `allocate`.
    """
    check_kind(groups, Groups)
    check_kind(scores, Scores)
    if damage is not None and not callable(damage):
        raise ConfigError(
            "`damage` is a function of a group's name and how many channels it keeps, such as "
            f"`Sensitivity.damage`, got {damage!r}"
        )
    if not len(groups):
        raise nothing_to_prune(groups)
    chooser = Chooser(groups, scores)
    of = multiples(groups, chooser.clusters, multiple_of)
    if isinstance(target, Budget):
        return _under(chooser, of, target, _most(groups, max_ratio), damage, latency_model)
    ratios = _ratios(groups, target)
    counts = [
        _nearest(chooser, cluster, ratios, asked)
        for cluster, asked in zip(chooser.clusters, of, strict=True)
    ]
    return Allocation(make_plan(groups, chooser.mask(counts), chooser.layout))


def _ratios(groups: Groups, target: float | Mapping[str, float]) -> dict[str, float]:
    ratios = {group.name: 0.0 for group in groups} | _shares(groups, target)
    for name, ratio in ratios.items():
        if not 0 <= ratio < 1:
            raise ConfigError(
                f"a ratio is the share of channels removed, 0 <= ratio < 1, got {ratio=} for "
                f"{name!r}"
            )
    return ratios


def _shares(groups: Groups, asked: float | Mapping[str, float]) -> dict[str, float]:
    """Read one number for all groups, or one by name."""
    known = [group.name for group in groups]
    named = asked if isinstance(asked, Mapping) else dict.fromkeys(known, asked)
    for name, share in named.items():
        if name not in known:
            raise ConfigError(f"no group called {name!r}{nearest(name, known)}")
        if isinstance(share, str) or not isinstance(share, SupportsFloat):
            raise ConfigError(
                f"a ratio is a share of channels, a number such as 0.5, got {share!r} for {name!r}"
            )
    return {name: float(share) for name, share in named.items()}


def _most(groups: Groups, max_ratio: MaxRatio) -> dict[str, float]:
    most = _shares(groups, max_ratio)
    for name, ratio in most.items():
        if not 0 <= ratio <= 1:
            raise ConfigError(
                f"max_ratio is a share of channels, 0 <= max_ratio <= 1, got {ratio} for {name!r}"
            )
    return most


def _nearest(
    chooser: Chooser, cluster: Cluster, ratios: Mapping[str, float], multiples: Multiples
) -> np.ndarray:
    counts = chooser.nearest(cluster, ratios)
    if not len(multiples.of):
        return counts
    levels = ladder(chooser, cluster, multiples).counts
    return np.asarray(levels[np.abs(levels - counts).sum(1).argmin()])


def _under(
    chooser: Chooser,
    of: Sequence[Multiples],
    budget: Budget,
    most: Mapping[str, float],
    damage: Damage | None,
    latency_model: LatencyModel | None,
) -> Allocation:
    """Keep a budget."""
    groups = chooser.groups
    memory = peak(chooser.layout.flow) if budget.activation_bytes is not None else None
    meters = Meters(groups, memory, _model_for(budget, latency_model))
    dense = meters.costs(np.ones(groups.channels, dtype=bool))
    room = Room(chooser, budget.resolve(dense), meters, most, of)
    if not room.exceeded(dense):
        raise NothingToPruneError(
            f"the dense model keeps the budget as it is: {_margins(room, dense)}. Give a smaller "
            "budget"
        )
    ladders = [ladder(chooser, c, asked) for c, asked in zip(chooser.clusters, of, strict=True)]
    whole = tuple(_whole(chooser.clusters, of, ladders))
    if meters.latency is not None:
        ladders = worthwhile(chooser, of, ladders, meters)
    try:
        ladders = reachable(room, ladders, dense)
    except BudgetError as cause:
        raise BudgetError("; ".join((str(cause), *whole)), reachable=cause.reachable) from None
    fitted = fit(room, ladders, damage)
    mask = chooser.mask(fitted.counts)
    plan = make_plan(groups, mask, chooser.layout)
    plan = replace(plan, before=dense, after=meters.costs(mask))
    found = Allocation(plan, fitted.damage, fitted.bound)
    warnings = (*whole, *_emptied(plan, most), *_left_over(room, plan.after))
    return replace(found, remarks=tuple(_remarks(found)), warnings=warnings)


def _margins(room: Room, dense: Costs) -> str:
    return ", ".join(
        f"{written(name, getattr(dense, name))} of at most {written(name, limit)}"
        for name, limit in room.limits.items()
    )


def _model_for(budget: Budget, model: LatencyModel | None) -> LatencyModel | None:
    if budget.latency is None:
        return None
    if model is None:
        raise ConfigError(
            "a budget on latency needs a latency model of this network, `latency_model=`: measure "
            "one with `prunella.latency.profile`, or give `prune` a `runtime`"
        )
    return model


def _whole(
    clusters: Sequence[Cluster], of: Sequence[Multiples], ladders: Sequence[Ladder]
) -> Iterator[str]:
    """Name the groups that stay because nothing below all of them is a multiple."""
    sizes = Counter[str]()
    for cluster, asked, found in zip(clusters, of, ladders, strict=True):
        if len(asked.of) and len(found) == 1:
            for atom in cluster.atoms:
                sizes[atom.group] += len(atom.channels)
    if sizes:
        listed = _some(f"{group} ({size} channels)" for group, size in sizes.items())
        yield f"multiple_of leaves no choice but all channels to {listed}"


def _emptied(plan: Plan, most: Mapping[str, float]) -> Iterator[str]:
    """Name the groups that lose more than their largest ratio."""
    least = {
        name: math.ceil((1 - ratio) * plan.sizes[name] - _ROUNDING) for name, ratio in most.items()
    }
    names = [
        f"{name} keeps {len(kept)} of {plan.sizes[name]} channels ({least[name]} asked)"
        for name, kept in plan.channels.items()
        if len(kept) < least.get(name, 0)
    ]
    if names:
        yield f"the budget cannot be kept within max_ratio: {_some(names)}"


def _left_over(room: Room, left: Costs) -> Iterator[str]:
    """Say what is left of a budget that cannot be used up."""
    if not used_up(room, left):
        for name, limit in room.limits.items():
            found = written(name, getattr(left, name))
            yield f"of at most {written(name, limit)} the best choice leaves {found}"


def _remarks(found: Allocation) -> Iterator[str]:
    if found.damage and found.gap is not None and np.isfinite(found.gap):
        yield f"predicted damage {found.damage:.4g}, within {found.gap:.2%} of the least"


def _some(names: Iterable[str]) -> str:
    """List names, but not all of very many."""
    found = list(names)
    return ", ".join(found[:_NAMED]) + (", ..." if len(found) > _NAMED else "")
