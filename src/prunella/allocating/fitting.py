"""Fit a choice of levels into a budget, and fill what is left of it with finer ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prunella.allocating.bill import Bill, Meters
from prunella.allocating.choosing import Chooser
from prunella.allocating.levels import Damage, between, curve, excess
from prunella.allocating.multiples import Multiples
from prunella.allocating.problem import Problem
from prunella.allocating.solving import solve
from prunella.allocating.steps import evenly, spend
from prunella.costs.ladders import Ladder
from prunella.errors import BudgetError
from prunella.plan import Costs

_USED, _USED_TIME = 0.99, 0.97
"""A budget of which less than this is used is filled up with single channels; of a time, which is
not predicted that well, less will do."""

_PERCENT = 100  # counts up to this are small enough to have been meant as a share

_FAR = 1e3  # damages so many times that of a choice are no part of a better one

_PRICE = 100.0  # of a whole group beyond its largest ratio, in units of all damage there is


@dataclass(frozen=True, eq=False)
class Room:
    """What a choice has to fit into.

    Attributes:
        chooser: Knows which channels are kept.
        limits: What may remain, by the name of the cost.
        meters: Price the costs.
        most: The largest ratio of groups.
        multiples: What the counts of every cluster have to be multiples of.
    """

    chooser: Chooser
    limits: Mapping[str, float]
    meters: Meters
    most: Mapping[str, float]
    multiples: Sequence[Multiples]

    def costs(self, counts: Sequence[np.ndarray]) -> Costs:
        """Return the costs with so many channels of every atom, by cluster."""
        return self.meters.costs(self.chooser.mask(counts))

    def exceeded(self, costs: Costs) -> list[str]:
        """List the limits that costs are above."""
        return [name for name, limit in self.limits.items() if getattr(costs, name) > limit]

    def excess(self, ladders: Sequence[Ladder]) -> list[np.ndarray]:
        """Say for every level how far it cuts beyond the largest ratios."""
        pairs = zip(self.chooser.clusters, ladders, strict=True)
        return [excess(cluster, found.counts, self.most) for cluster, found in pairs]


@dataclass(frozen=True, eq=False)
class Fitted:
    """Counts by cluster; the damage that is predicted, and what none within the budget is below."""

    counts: Sequence[np.ndarray]
    damage: float | None = None
    bound: float | None = None


def reachable(room: Room, ladders: Sequence[Ladder], dense: Costs) -> list[Ladder]:
    """Drop the levels beyond the largest ratios, unless the budget cannot be kept without them.

    Raises:
        BudgetError: It cannot be kept with them either.
    """
    spared = [
        Ladder(found.atoms, found.counts[much == 0])
        for found, much in zip(ladders, room.excess(ladders), strict=True)
    ]
    if not room.exceeded(room.costs([found.counts[-1] for found in spared])):
        return spared
    least = room.costs([found.counts[-1] for found in ladders])
    for name in room.exceeded(least):
        left, whole = getattr(least, name), getattr(dense, name)
        raise BudgetError(
            f"no plan leaves at most {written(name, room.limits[name])} of the dense model's "
            f"{_amount(name, whole)}: the smallest possible leaves {_amount(name, left)} "
            f"({left / whole:.1%}). Raise the budget, {_looser(room)}or exclude less"
            f"{_share(name, room.limits[name])}",
            reachable=left,
        )
    return list(ladders)


def _looser(room: Room) -> str:
    return "lower `multiple_of`, " if any(len(asked.of) for asked in room.multiples) else ""


def _share(name: str, limit: float) -> str:
    meant = name != "latency" and limit <= _PERCENT
    return f"; {limit:g}% is written {limit / _PERCENT:g} or '{limit:g}%'" if meant else ""


def written(name: str, cost: float) -> str:
    """Write a cost with its name: `1,000 macs`, `8.25 ms of latency`."""
    return f"{_amount(name, cost)} of latency" if name == "latency" else f"{cost:,} {name}"


def _amount(name: str, cost: float) -> str:
    return f"{cost:.4g} ms" if name == "latency" else f"{cost:,}"


def used_up(room: Room, left: Costs) -> bool:
    """Say whether as much of a budget is used as can be expected."""
    return any(
        getattr(left, name) >= (_USED_TIME if name == "latency" else _USED) * limit
        for name, limit in room.limits.items()
    )


def fit(room: Room, ladders: Sequence[Ladder], damage: Damage | None) -> Fitted:
    """Choose levels within the budget; where much of it is unused, levels between these.

    Args:
        room: What to fit into; the last levels do.
        ladders: The levels of every cluster.
        damage: Predicted loss by group and kept channels; without, all lose the same share.
    """
    fitted, at = _fit(room, ladders, damage)
    if used_up(room, room.costs(fitted.counts)):
        return fitted
    finer = [
        between(room.chooser, cluster, found, level, asked)
        for cluster, found, level, asked in zip(
            room.chooser.clusters, ladders, at, room.multiples, strict=True
        )
    ]
    if all(len(found) < 3 for found in finer):
        return fitted
    filled, _ = _fit(room, finer, damage)
    if filled.damage is None or fitted.bound is None:
        return filled
    return replace(filled, bound=min(filled.damage, fitted.bound))


def _solve(
    curves: Sequence[np.ndarray],
    over: Sequence[np.ndarray],
    shares: Sequence[np.ndarray],
    bill: Bill,
) -> tuple[Sequence[int], float]:
    """Choose the levels of least damage; return them and by how much others might do less.

    Damages that no good choice comes near (groups that destroy a network when they are nearly
    empty) would drown all others: in the solver's tolerance, and in the tilt that decides ties.
    Once some choice is known, no level that alone does twice its damage belongs to a better one, so
    damages are cut off there, and the problem is solved again.
    """
    while True:
        price = _PRICE * (1 + sum(float(np.abs(found).max()) for found in curves))
        priced = [found + price * much for found, much in zip(curves, over, strict=True)]
        problem = Problem(priced, shares, bill)
        solution = solve(problem)
        short = max(0.0, problem.loss(solution.state) - solution.bound)
        done, most = _sum(curves, solution.state), max(float(found.max()) for found in curves)
        if not 0 < done < most / _FAR:
            return solution.state, short
        curves = [np.minimum(found, 2 * done) for found in curves]


def _sum(curves: Sequence[np.ndarray], at: Sequence[int]) -> float:
    return float(sum(found[i] for found, i in zip(curves, at, strict=True)))


def _fit(
    room: Room, ladders: Sequence[Ladder], damage: Damage | None
) -> tuple[Fitted, Sequence[int]]:
    over = room.excess(ladders)
    bill = Bill(room.meters, ladders, room.limits)
    whole = [cluster.sizes().sum() for cluster in room.chooser.clusters]
    shares = [1 - found.counts.sum(1) / n for found, n in zip(ladders, whole, strict=True)]
    at: Sequence[int] = [0] * len(ladders)
    if damage is None:
        if len(bill.limits):
            at = spend(bill, len(ladders), evenly(shares, over))
        return Fitted([found.counts[i] for found, i in zip(ladders, at, strict=True)]), at
    pairs = zip(room.chooser.clusters, ladders, strict=True)
    curves = [curve(cluster, found.counts, damage) for cluster, found in pairs]
    short = 0.0
    if len(bill.limits):
        at, short = _solve(curves, over, shares, bill)
    done = _sum(curves, at)
    counts = [found.counts[i] for found, i in zip(ladders, at, strict=True)]
    return Fitted(counts, done, done - short), at
