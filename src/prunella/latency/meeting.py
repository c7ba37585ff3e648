"""A plan that keeps a budget on time on the stopwatch, not only as predicted.

A prediction is a few percent off, mostly by a factor: all of a machine's runs of one network are a
little slower or faster than those of others. So the pruned network is timed beside the dense one,
the budget that the allocation is given is corrected by what was missed, and it allocates again.
"""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from prunella.allocating import Allocation
from prunella.costs.latency import RESOLUTION, Latency, Speedup, compare, speedup
from prunella.costs.timed import LatencyModel
from prunella.errors import BudgetError, NothingToPruneError
from prunella.plan import Budget, Groups, milliseconds
from prunella.runtimes import Runtime, prepare
from prunella.transforming.transforming import smaller

TRIES = 4
"""Plans that are timed, at most."""

SECONDS = 4.0
"""For each, the dense network's runs among them."""

_SLOWER, _FASTER = RESOLUTION, 0.04  # how far from what was asked is near enough
_STEP = 0.8, 1.25  # the largest correction at once
_BUSY = 1.2  # times as slow as at its best

log = logging.getLogger("prunella")


@dataclass(frozen=True)
class Met:
    """What was asked of time, what was predicted, and what the stopwatch says.

    Attributes:
        runtime: Where it was measured, as `Runtime` writes itself.
        asked: The budget: a share of the dense network's time, or milliseconds with "ms".
        limit: Milliseconds that the pruned network may take.
        predicted: Milliseconds of the plan, by the latency model as it was measured.
        dense: The dense network's runs.
        pruned: The pruned network's, between those.
        speedup: By their runs side by side.
        tries: Plans that were timed.
        error: The latency model's median error on plans it has not seen.
        quiet: Milliseconds of the dense network at its best, now or when it was profiled.
    """

    runtime: str
    asked: float | str
    limit: float
    predicted: float
    dense: Latency
    pruned: Latency
    speedup: Speedup
    tries: int
    error: float
    quiet: float

    @property
    def got(self) -> float:
        """Return the milliseconds of the pruned network, on a machine that does nothing else.

        It is told by the runs side by side: other work slows both networks alike, and a budget in
        milliseconds is not one for a machine that does something else.
        """
        return self.quiet / self.speedup.ratio

    @property
    def used(self) -> float:
        """Return which share of the budget the pruned network takes; above 1 it is exceeded."""
        return self.got / self.limit

    @property
    def kept(self) -> bool:
        """Say whether the budget is kept, but for what no stopwatch can tell."""
        return self.used <= 1 + _SLOWER

    @property
    def missed(self) -> bool:
        """Say whether the budget is exceeded even at the fast end of what these runs can tell."""
        return self.quiet / self.speedup.high > (1 + _SLOWER) * self.limit

    def __str__(self) -> str:
        """Say in one line what was asked and what came."""
        text = (
            f"{self.dense} -> {self.pruned}, {self.speedup}; asked {self.limit:.4g} ms, predicted "
            f"{self.predicted:.4g} ms ({self.runtime})"
        )
        if self.dense.median_ms > _BUSY * self.quiet:
            text += f"; the machine is busy, the dense network alone took {self.quiet:.4g} ms"
        return text if self.kept else f"{text}: NOT KEPT"


def meet(  # noqa: PLR0913 - a stage of its own
    model: nn.Module,
    groups: Groups,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    budget: Budget,
    latency_model: LatencyModel,
    allocate: Callable[[Budget], Allocation],
    *,
    dense: nn.Module | None = None,
    tries: int = TRIES,
    seconds: float = SECONDS,
) -> tuple[Allocation, Met]:
    """Allocate until the pruned network's time is what was asked.

    Args:
        model: The model to prune.
        groups: Its groups.
        inputs: Arguments and keyword arguments that are timed.
        budget: With a latency, of which the others stay as they are.
        latency_model: Of this network.
        allocate: Makes the plan for a budget.
        dense: The model whose time the budget speaks of, where `model` is pruned already.
        tries: Plans to time, at most.
        seconds: For each.

    Returns:
        The slowest plan that keeps the budget; where none does, the fastest, and `kept` is false.

    Raises:
        BudgetError: No plan is predicted to keep the budget.
    """
    assert budget.latency is not None, "there is a budget on latency to meet"
    runtime = Runtime.of(latency_model.runtime)
    found: list[tuple[Allocation, Met]] = []
    factor = 1.0
    with ExitStack() as stack:
        whole = stack.enter_context(prepare(model if dense is None else dense, *inputs, runtime))
        for _ in range(tries):
            try:
                choice = allocate(replace(budget, latency=_times(budget.latency, factor)))
            except (BudgetError, NothingToPruneError):
                if not found:
                    raise
                break  # nothing is faster, or nothing slower
            plan = choice.plan
            if any(plan.channels == other.plan.channels for other, _ in found):
                break
            small = smaller(model, plan, groups, inputs)
            with prepare(small, *inputs, runtime) as pruned:
                times = compare({"dense": whole, "pruned": pruned}, seconds=seconds)
            predicted = plan.after.latency or 0.0
            met = judged(times["dense"], times["pruned"], budget.latency, latency_model, predicted)
            log.info("latency, try %d: %s", len(found) + 1, met)
            found.append((choice, met))
            if -_FASTER <= met.used - 1 <= _SLOWER:
                break
            factor *= min(max(1 / met.used, _STEP[0]), _STEP[1])
    choice, met = _best(found)
    if not met.kept:
        log.warning(
            "the budget of %s on latency is not kept: the fastest of %d plans takes %s",
            met.asked,
            len(found),
            met.pruned,
        )
    return choice, replace(met, tries=len(found))


def judged(
    dense: Latency,
    pruned: Latency,
    asked: float | str,
    latency_model: LatencyModel,
    predicted: float,
) -> Met:
    """Hold two networks that were timed together against a budget.

    Args:
        dense: The dense network's runs.
        pruned: The pruned network's, between those.
        asked: The budget.
        latency_model: Of the dense network, which knows its time on a quiet machine.
        predicted: Milliseconds that were predicted of the pruned one.
    """
    quiet = min(latency_model.dense, dense.median_ms)
    return Met(
        runtime=latency_model.runtime,
        asked=asked,
        limit=milliseconds(asked, quiet),
        predicted=predicted,
        dense=dense,
        pruned=pruned,
        speedup=speedup(dense, pruned),
        tries=1,
        error=latency_model.error,
        quiet=quiet,
    )


def _times(bound: float | str, factor: float) -> float | str:
    """Multiply a budget: a share stays one, since it is one of what is predicted for the dense."""
    whole = milliseconds(bound, 1.0) * factor
    return min(whole, 1.0) if _is_share(bound) else f"{whole:.12g}ms"


def _is_share(bound: float | str) -> bool:
    return milliseconds(bound, 1.0) != milliseconds(bound, 2.0)


def _best(found: list[tuple[Allocation, Met]]) -> tuple[Allocation, Met]:
    """Return the plan that uses most of the budget, of those that keep it; else the fastest."""

    def share(pair: tuple[Allocation, Met]) -> float:
        return pair[1].used

    kept = [pair for pair in found if pair[1].kept]
    return max(kept, key=share) if kept else min(found, key=share)
