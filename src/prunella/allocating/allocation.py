"""Decide how many channels each group loses, and which: groups + scores + budget -> `Plan`."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prunella.allocating.bill import Bill
from prunella.allocating.choosing import Chooser
from prunella.allocating.levels import Damage, curve, excess, ladder
from prunella.allocating.multiples import MultipleOf, Multiples, multiples
from prunella.allocating.problem import Problem
from prunella.allocating.solving import solve
from prunella.allocating.steps import evenly, spend
from prunella.costs.ladders import Ladder
from prunella.costs.memory import Peak, peak
from prunella.costs.predicted import predict
from prunella.counting import Cluster
from prunella.errors import BudgetError, ConfigError
from prunella.plan import Budget, Costs, Groups, Plan, Scores, nearest
from prunella.planning import make_plan, nothing_to_prune

MaxRatio = float | Mapping[str, float]
"""The largest ratio of all groups, or one by group name; groups not named may lose anything."""

_PRICE = 100.0  # of a whole group beyond its largest ratio, in units of all damage there is

_NAMED = 5

log = logging.getLogger("prunella")


@dataclass(frozen=True)
class Allocation:
    """A plan, and how near it is to the best one.

    Attributes:
        plan: What is kept.
        damage: Predicted damage in all; None without predictions, or under a ratio.
        bound: No choice of levels within the budget does less; None where nothing is known.
    """

    plan: Plan
    damage: float | None = None
    bound: float | None = None

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
) -> Plan:
    """Choose the channels to keep.

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
            that stay whole, and the log names them.
        max_ratio: The largest ratio that groups lose under a budget, unless it cannot be kept
            otherwise: one number, or one by group name.

    Returns:
        A plan. Under a budget its costs are at most the budget.

    Raises:
        BudgetError: No plan fits; `reachable` is the smallest cost.
        NothingToPruneError: The plan would remove nothing.
        ConfigError: A ratio or multiple is out of range, or a group is unknown.
    """
    return allocate_and_bound(
        groups, scores, target, damage, multiple_of=multiple_of, max_ratio=max_ratio
    ).plan


def allocate_and_bound(
    groups: Groups,
    scores: Scores,
    target: Budget | float | Mapping[str, float],
    damage: Damage | None = None,
    *,
    multiple_of: MultipleOf = 1,
    max_ratio: MaxRatio = 1.0,
) -> Allocation:
    """Choose the channels to keep, and say how near the choice is to the best one.

    Arguments and errors are those of `allocate`.
    """
    if not len(groups):
        raise nothing_to_prune(groups)
    chooser = Chooser(groups, scores)
    of = multiples(groups, chooser.clusters, multiple_of)
    if isinstance(target, Budget):
        return _Fit(chooser, of, target, _most(groups, max_ratio)).allocation(damage)
    ratios = _ratios(groups, target)
    counts = [
        _nearest(chooser, cluster, ratios, asked)
        for cluster, asked in zip(chooser.clusters, of, strict=True)
    ]
    return Allocation(make_plan(groups, chooser.mask(counts), chooser.layout))


def _ratios(groups: Groups, target: float | Mapping[str, float]) -> dict[str, float]:
    if isinstance(target, Mapping):
        ratios = {**dict.fromkeys((g.name for g in groups), 0.0), **_known(groups, target)}
    else:
        ratios = {group.name: float(target) for group in groups}
    for name, ratio in ratios.items():
        if not 0 <= ratio < 1:
            raise ConfigError(
                f"a ratio is the share of channels removed, 0 <= ratio < 1, got {ratio=} for "
                f"{name!r}"
            )
    return ratios


def _known(groups: Groups, asked: Mapping[str, float]) -> dict[str, float]:
    known = [group.name for group in groups]
    for name in asked:
        if name not in known:
            raise ConfigError(f"no group called {name!r}{nearest(name, known)}")
    return {name: float(number) for name, number in asked.items()}


def _most(groups: Groups, max_ratio: MaxRatio) -> dict[str, float]:
    if isinstance(max_ratio, Mapping):
        most = _known(groups, max_ratio)
    else:
        most = {group.name: float(max_ratio) for group in groups}
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


@dataclass(frozen=True, eq=False)
class _Fit:
    """One budget to keep."""

    chooser: Chooser
    multiples: Sequence[Multiples]
    budget: Budget
    most: Mapping[str, float]

    def allocation(self, damage: Damage | None) -> Allocation:
        chooser, groups = self.chooser, self.chooser.groups
        memory = peak(chooser.layout.flow) if self.budget.activation_bytes is not None else None
        dense = _costs(groups, np.ones(groups.channels, dtype=bool), memory)
        limits = self.budget.resolve(dense)
        ladders = [
            ladder(chooser, cluster, asked)
            for cluster, asked in zip(chooser.clusters, self.multiples, strict=True)
        ]
        self._name_whole(ladders)
        over = self._excess(ladders)
        spared = [
            Ladder(found.atoms, found.counts[much == 0])
            for found, much in zip(ladders, over, strict=True)
        ]
        if not self._short(spared, limits, memory):
            ladders, over = spared, self._excess(spared)
        elif short := self._short(ladders, limits, memory):
            raise self._unreachable(short, limits, dense)
        bill = Bill(groups, ladders, limits, memory)
        shares = [1 - found.counts.sum(1) / found.counts[0].sum() for found in ladders]
        at: Sequence[int] = [0] * len(ladders)
        if damage is None:
            if len(bill.limits):
                at = spend(bill, len(ladders), evenly(shares, over))
            return Allocation(self._plan(ladders, at, dense, memory))
        curves = [
            curve(c, found.counts, damage)
            for c, found in zip(chooser.clusters, ladders, strict=True)
        ]
        price = _PRICE * (1 + sum(float(np.abs(found).max()) for found in curves))
        priced = [found + price * much for found, much in zip(curves, over, strict=True)]
        lost = 0.0
        if len(bill.limits):
            problem = Problem(priced, shares, bill)
            solution = solve(problem)
            at, lost = solution.state, max(0.0, problem.loss(solution.state) - solution.bound)
        done = float(sum(found[i] for found, i in zip(curves, at, strict=True)))
        return Allocation(self._plan(ladders, at, dense, memory), done, done - lost)

    def _name_whole(self, ladders: Sequence[Ladder]) -> None:
        """Name the groups that stay because nothing below all of them is a multiple."""
        clusters = self.chooser.clusters
        names = [
            f"{atom.group} ({len(found.atoms[i])} channels)"
            for c, asked, found in zip(clusters, self.multiples, ladders, strict=True)
            for i, atom in enumerate(c.atoms)
            if len(asked.of) and len(found) == 1
        ]
        if names:
            more = ", ..." if len(names) > _NAMED else ""
            log.warning(
                "multiple_of leaves no choice but all channels to %s%s",
                ", ".join(names[:_NAMED]),
                more,
            )

    def _excess(self, ladders: Sequence[Ladder]) -> list[np.ndarray]:
        clusters = self.chooser.clusters
        return [
            excess(c, found.counts, self.most) for c, found in zip(clusters, ladders, strict=True)
        ]

    def _short(
        self, ladders: Sequence[Ladder], limits: Mapping[str, int], memory: Peak | None
    ) -> dict[str, int]:
        """Return what the least of all levels costs where that is above a limit."""
        mask = self.chooser.mask([found.counts[-1] for found in ladders])
        smallest = _costs(self.chooser.groups, mask, memory)
        return {n: getattr(smallest, n) for n in limits if getattr(smallest, n) > limits[n]}

    def _unreachable(
        self, short: Mapping[str, int], limits: Mapping[str, int], dense: Costs
    ) -> BudgetError:
        name, least = next(iter(short.items()))
        whole = getattr(dense, name)
        return BudgetError(
            f"no plan leaves at most {limits[name]:,} {name} of {whole:,}: the smallest "
            f"possible leaves {least:,} ({least / whole:.1%}). Raise the budget, or exclude less",
            reachable=least,
        )

    def _plan(
        self, ladders: Sequence[Ladder], at: Sequence[int], dense: Costs, memory: Peak | None
    ) -> Plan:
        chooser = self.chooser
        mask = chooser.mask([found.counts[i] for found, i in zip(ladders, at, strict=True)])
        plan = make_plan(chooser.groups, mask, chooser.layout)
        return replace(plan, before=dense, after=_costs(chooser.groups, mask, memory))


def _costs(groups: Groups, mask: np.ndarray, memory: Peak | None) -> Costs:
    costs = predict(groups, mask)
    if memory is None:
        return costs
    return replace(costs, activation_bytes=memory.evaluate(mask) // groups.graph.samples)
