"""Choose a level for every cluster so that the damage is least within the budget.

Steps by damage per cost saved make a beginning. Prices in place of limits then give a bound, and
choices near it; what the bound rules out is dropped, and what is left of small enough a problem is
solved exactly.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from prunella.allocating import exact
from prunella.allocating.dual import Dual, solve_dual, tractable
from prunella.allocating.polishing import polish
from prunella.allocating.problem import Problem, State
from prunella.allocating.steps import by_damage, spend

SECONDS = 5.0
_POLISHED = 4  # choices from which small moves begin
_CLOSE = 1e-7


@dataclass(frozen=True, slots=True)
class Solution:
    """A state, and what no state within the budget is below.

    `bound` is minus infinity where the network hangs together too tightly for one.
    """

    state: State
    bound: float


def solve(problem: Problem, seconds: float = SECONDS) -> Solution:
    """Choose levels.

    Args:
        problem: What is to be decided; the last levels keep the budget.
        seconds: For the proof; all else takes what it takes.
    """
    order = by_damage(problem.curves, problem.bill)
    best = tuple(spend(problem.bill, len(problem.sizes), order))
    if not tractable(problem):
        return Solution(polish(problem, best), -np.inf)
    smallest = tuple(n - 1 for n in problem.sizes)
    dual = solve_dual(problem, (best, smallest, (0,) * len(smallest)))
    best = _best(problem, (best, *_fitting(problem, (*dual.states, *dual.near))))
    if problem.loss(best) - dual.bound <= _close(problem, best):
        return Solution(best, dual.bound)
    alive = _alive(dual, problem.loss(best) + _close(problem, best))
    if not exact.small(problem, alive):
        return Solution(best, dual.bound)
    found = exact.solve_exactly(problem, alive, seconds)
    if found.state is not None and problem.loss(found.state) < problem.loss(best):
        best = found.state
    bound = max(dual.bound, min(found.bound, problem.loss(best)))
    return Solution(best, bound)


def _close(problem: Problem, state: State) -> float:
    return _CLOSE * max(abs(problem.loss(state)), 1e-12)


def _fitting(problem: Problem, states: Iterable[State]) -> list[State]:
    """Return the best of some choices that keep the budget."""
    return sorted((s for s in states if problem.fits(s)), key=problem.loss)[:_POLISHED]


def _best(problem: Problem, states: Iterable[State]) -> State:
    return min((polish(problem, s) for s in dict.fromkeys(states)), key=problem.loss)


def _alive(dual: Dual, least: float) -> list[np.ndarray]:
    """Drop the levels with which no choice is as good as one that is known."""
    return [np.flatnonzero(bound <= least) for bound in dual.marginals]
