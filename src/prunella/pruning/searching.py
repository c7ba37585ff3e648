"""One-step mode: many plans within the budget, each judged after its repair; the best one is kept.

Predicted damage is a sum over groups that were cut one by one. What cuts do to each other, and how
well repair makes up for all of them together, is only seen once it is done. So the curves that the
allocation trusts are bent at random, every plan that comes out is repaired and judged on inputs it
was not repaired with, and further plans are drawn around the best so far.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunella.allocating import Allocation, Damage, allocate_and_bound
from prunella.allocating.allocation import MaxRatio
from prunella.allocating.multiples import MultipleOf
from prunella.calibration import Calibration, thinned
from prunella.errors import ConfigError
from prunella.model.examples import Arguments
from prunella.model.modes import evaluating
from prunella.plan import Budget, Groups, Indices, Plan, Scores
from prunella.progress import Progress, or_silent
from prunella.repairing.compensating import compensate
from prunella.repairing.divergence import divergence_from, softened
from prunella.scoring import score
from prunella.scoring.criteria import WITH_DATA, WITHOUT_DATA
from prunella.scoring.gradients import NoGradientError
from prunella.sensitivity.processes import check_workers, shared_out
from prunella.transforming import runnable, with_scales

SAMPLES = 512
"""So many samples at most repair a candidate, and so many others judge it."""

_ROUND = 6  # plans drawn around the same point; fixed, so that workers change nothing
_ATTEMPTS = 5  # draws for a plan that is not there yet, each from twice as far
_SPREAD, _BEND = 0.2, 0.1  # of the logarithms of factors and exponents

log = logging.getLogger("prunella")


@dataclass(frozen=True)
class Candidate:
    """A plan that was tried.

    Attributes:
        allocation: The plan, and how near it is to what was asked.
        criterion: By whose order channels go.
        predicted: Its damage as it was predicted.
        divergence: How far outputs are from the dense model's after repair, as `softened` says.
    """

    allocation: Allocation
    criterion: str
    predicted: float
    divergence: float

    @property
    def plan(self) -> Plan:
        """What it keeps."""
        return self.allocation.plan


@dataclass(frozen=True)
class Search:
    """The plans that were tried, in this order; the first is that of least predicted damage."""

    candidates: tuple[Candidate, ...]

    @property
    def first(self) -> Candidate:
        """The plan there would be without a search."""
        return self.candidates[0]

    @property
    def best(self) -> Candidate:
        """The plan whose outputs are nearest to the dense model's, of equals the first."""
        return min(self.candidates, key=lambda candidate: candidate.divergence)

    def __str__(self) -> str:
        """Say in one line what the search brought."""
        best, first = self.best, self.first
        order = f", channels by {best.criterion}" if best.criterion != first.criterion else ""
        return (
            f"best of {len(self.candidates)} plans: divergence {best.divergence:.3g} against "
            f"{first.divergence:.3g} of the first{order}"
        )


@dataclass(frozen=True)
class Task:
    """What plans are drawn from and judged by.

    Attributes:
        model: The dense model; left untouched.
        groups: Its groups.
        orders: In which orders channels may go; the first is the one to improve on.
        budget: What every plan meets.
        damage: Predicted loss; None: all groups lose about the same share.
        data: Inputs; one half repairs candidates, the other judges them.
        inputs: Of one call of the model.
        multiple_of: See `allocate`.
        max_ratio: See `allocate`.
    """

    model: nn.Module
    groups: Groups
    orders: Sequence[Scores]
    budget: Budget
    damage: Damage | None
    data: Calibration
    inputs: Arguments
    multiple_of: MultipleOf = 1
    max_ratio: MaxRatio = 1.0


def check_search(
    candidates: int, seed: int, workers: int, seconds: float | None, model: nn.Module
) -> None:
    """Raise `ConfigError` where there can be no such search."""
    if not isinstance(candidates, int | np.integer) or candidates < 1:
        raise ConfigError(f"a whole number of plans is made, at least one, got {candidates=}")
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise ConfigError(f"plans are drawn with a seed that is a whole number >= 0, got {seed=}")
    if seconds is not None and not (isinstance(seconds, Real) and seconds > 0):
        raise ConfigError(f"`seconds` is how long plans are tried, > 0, got {seconds!r}")
    check_workers(workers, model)
    if seconds is not None and candidates == 1:
        raise ConfigError(
            f"{seconds=} is how long plans are tried, and there is one: give `candidates`, how "
            "many at most, or leave out `seconds`"
        )


def search(
    task: Task,
    candidates: int,
    *,
    seed: int = 0,
    workers: int = 1,
    seconds: float | None = None,
    progress: Progress | None = None,
) -> Search:
    """Try plans, each repaired with one half of the data and judged on the other.

    Args:
        task: What plans are drawn from and judged by.
        candidates: How many plans at most, the one of least predicted damage included.
        seed: Of the draws. The same seed gives the same plans, with any number of workers.
        workers: In how many processes, on the CPU.
        seconds: When they have passed, no further plan is tried. The first one always is.
        progress: See `prunella.progress`.

    Raises:
        ConfigError: The data cannot be split in two.
        BudgetError: No plan fits.
    """
    until = math.inf if seconds is None else time.monotonic() + seconds
    repairing, judging = (thinned(half, SAMPLES) for half in halves(task.data))
    judge = divergence_from(task.model, judging, softened)

    def measure(plan: Plan) -> float:
        repaired = compensate(task.model, plan, repairing)
        whole = with_scales(task.model, plan, task.groups, task.inputs)
        pruned = runnable(repaired, whole, task.groups, task.inputs)
        with evaluating(pruned):
            return judge(pruned)

    drawer = _Drawer(task, np.random.default_rng(seed))
    with or_silent(progress)("search", candidates) as advance:
        first = drawer.first()
        found = [_Tried(first, measure(first.allocation.plan))]
        advance(1)
        while len(found) < candidates and time.monotonic() < until:
            centre = min(found, key=lambda tried: tried.divergence).draw.point
            some = min(_ROUND, candidates - len(found))
            draws = drawer.around(centre, some, until)
            if not draws:
                break
            values = _all(draws, measure, workers, until, advance)
            found += [_Tried(draws[i], values[i]) for i in sorted(values)]
    done = Search(
        tuple(
            Candidate(t.draw.allocation, t.draw.criterion, t.draw.predicted, t.divergence)
            for t in found
        )
    )
    log.info("%s", done)
    return done


def _all(
    draws: Sequence["_Draw"],
    measure: Callable[[Plan], float],
    workers: int,
    until: float,
    advance: Callable[[int], None],
) -> dict[int, float]:
    """Judge plans while there is time; return what was found by place."""

    def at(step: tuple[str, int]) -> float | None:
        return measure(draws[step[1]].allocation.plan) if time.monotonic() < until else None

    steps = [(f"plan {i}", i) for i in range(len(draws))]
    several = workers > 1 and len(draws) > 1
    pairs = shared_out(steps, workers, at) if several else ((step, at(step)) for step in steps)
    values: dict[int, float] = {}
    for (_, i), value in pairs:
        if value is not None:
            values[i] = value
        advance(1)
    return values


@dataclass(frozen=True)
class _Point:
    """Where a plan was drawn: the order of channels, and how curves were bent.

    `factors` and `bend` are logarithms: by group of what its curve is multiplied with, and of the
    power to which all are raised (above 1, large cuts are believed to be worse than predicted).
    """

    order: int
    bend: float
    factors: Mapping[str, float]


@dataclass(frozen=True)
class _Draw:
    point: _Point
    allocation: Allocation
    criterion: str
    predicted: float


@dataclass(frozen=True)
class _Tried:
    draw: _Draw
    divergence: float


class _Drawer:
    """Draws plans, none twice."""

    def __init__(self, task: Task, generator: np.random.Generator) -> None:
        self._task, self._generator = task, generator
        self._damage = task.damage or _evenly(task.groups)
        self._tops = {group.name: self._damage(group.name, 1) for group in task.groups}
        self._seen: set[tuple[tuple[str, Indices], ...]] = set()
        # Other orders are tried once each; what is drawn later goes by that of the best plan.
        self._untried = list(range(1, len(task.orders)))

    def first(self) -> _Draw:
        """Return the plan of least predicted damage."""
        origin = _Point(0, 0.0, dict.fromkeys(self._tops, 0.0))
        draw = self._draw(origin, self._task.damage)
        assert draw is not None, "nothing was drawn before"
        return draw

    def around(self, centre: _Point, count: int, until: float) -> list[_Draw]:
        """Draw so many plans around a point, or as many as can be found in time."""
        found: list[_Draw] = []
        while len(found) < count and time.monotonic() < until:
            draw = None
            if self._untried:
                draw = self._at(_Point(self._untried.pop(0), centre.bend, centre.factors))
            for attempt in range(_ATTEMPTS):
                draw = draw or self._at(self._moved(centre, 2.0**attempt))
            if draw is None:
                break
            found.append(draw)
        return found

    def _moved(self, centre: _Point, far: float) -> _Point:
        spread = far * _SPREAD * math.exp(0.5 * self._generator.standard_normal())
        steps = self._generator.standard_normal(len(centre.factors)).tolist()
        return _Point(
            centre.order,
            centre.bend + _BEND * self._generator.standard_normal(),
            {
                name: factor + spread * step
                for (name, factor), step in zip(centre.factors.items(), steps, strict=True)
            },
        )

    def _at(self, point: _Point) -> _Draw | None:
        def bent(name: str, kept: int) -> float:
            top, damage = self._tops[name], self._damage(name, kept)
            share = max(damage, 0.0) / top if top > 0 else 0.0
            return math.exp(point.factors[name]) * top * math.pow(share, math.exp(point.bend))

        return self._draw(point, bent)

    def _draw(self, point: _Point, damage: Damage | None) -> _Draw | None:
        task = self._task
        scores = task.orders[point.order]
        found = allocate_and_bound(
            task.groups,
            scores,
            task.budget,
            damage,
            multiple_of=task.multiple_of,
            max_ratio=task.max_ratio,
        )
        kept = found.plan.channels
        key = tuple(kept.items())
        if key in self._seen:
            return None
        self._seen.add(key)
        predicted = sum(self._damage(name, len(channels)) for name, channels in kept.items())
        return _Draw(point, found, scores.criterion, predicted)


def _evenly(groups: Groups) -> Damage:
    """Return a curve for all groups alike, where nothing was measured."""
    sizes = {group.name: group.channels for group in groups}
    return lambda name, kept: (1 - kept / sizes[name]) ** 2


def orders(
    model: nn.Module, groups: Groups, scores: Scores, data: Calibration, *, named: bool
) -> list[Scores]:
    """List the orders in which a search lets channels go, the one to improve on first.

    The others are those of the criteria that are taken where nothing is reconstructed, as far as
    they work.

    Args:
        model: The dense model.
        groups: Its groups.
        scores: The order to improve on.
        data: Inputs.
        named: Whether the criterion of `scores` was asked for by name: then it is the only one.
    """
    found = [scores]
    if named:
        return found
    found.append(score(model, groups, WITHOUT_DATA))
    if not len(groups):
        return found  # nothing has a gradient then; that nothing can be pruned is said later
    try:
        found.append(score(model, groups, WITH_DATA, data))
    except NoGradientError:
        log.info("channels are not tried in the order of %s: there are no gradients", WITH_DATA)
    return found


def halves(data: Calibration) -> tuple[Calibration, Calibration]:
    """Split batches in two; a lone batch is taken apart.

    Raises:
        ConfigError: There is one batch, of one sample.
    """
    batches = list(data.batches)
    if len(batches) == 1:
        batches = _apart(batches[0])
    return Calibration(batches[::2]), Calibration(batches[1::2])


def _apart(batch: Arguments) -> list[Arguments]:
    leaves, spec = pytree.tree_flatten(batch)
    sizes = {leaf.shape[:1] for leaf in leaves if isinstance(leaf, Tensor)}
    size = sizes.pop() if len(sizes) == 1 else torch.Size()
    if not size or size[0] < 2:
        raise ConfigError(
            "one half of the calibration data repairs candidates and the other judges them; this "
            "is one batch that cannot be split in two. Give at least two batches"
        )

    def half(leaf: Any, index: int) -> Any:
        return leaf.tensor_split(2)[index] if isinstance(leaf, Tensor) else leaf

    return [pytree.tree_unflatten([half(leaf, i) for leaf in leaves], spec) for i in (0, 1)]
