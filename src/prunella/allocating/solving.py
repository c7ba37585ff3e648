"""Choose a level for every cluster so that the damage is least within the budget.

Steps by damage per cost saved make a beginning. Prices in place of limits then give a bound, and
choices near it; what the bound rules out is dropped, and what is left of small enough a problem is
solved exactly.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from prunella.allocating import exact
from prunella.allocating.dual import Dual, solve_dual
from prunella.allocating.polishing import give_back, trade
from prunella.allocating.problem import Problem, State
from prunella.allocating.steps import by_damage, spend

SECONDS = 20.0  # a safeguard: nodes are what is counted, so that a busy machine finds the same
_NEAR = 8  # choices to which channels are given back
_CLOSE = 1e-7  # of all damage: nothing better is worth looking for
_ENOUGH = 1e-3  # likewise, where looking takes long
_FEW, _MANY = 1_000, 30_000  # variables of a program that is soon solved, and of one that never is


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
    best = give_back(problem, tuple(spend(problem.bill, len(problem.sizes), order)))
    smallest = tuple(n - 1 for n in problem.sizes)
    dual = solve_dual(problem, (best, smallest, (0,) * len(smallest)))
    near = (best, *_fitting(problem, dual.states))
    best = trade(problem, min((give_back(problem, s) for s in near), key=problem.loss))
    gap = problem.loss(best) - dual.bound
    if gap <= _close(problem, best):
        return Solution(best, dual.bound)
    alive = _alive(dual, problem.loss(best) + _close(problem, best))
    columns = exact.columns(problem, alive)
    if columns > _MANY or (columns > _FEW and gap <= _ENOUGH * problem.loss(best)):
        return Solution(best, dual.bound)
    found = exact.solve_exactly(problem, alive, seconds)
    if found.state is not None and problem.loss(found.state) < problem.loss(best):
        best = found.state
    bound = max(dual.bound, min(found.bound, problem.loss(best)))
    return Solution(best, bound)


def _close(problem: Problem, state: State) -> float:
    return _CLOSE * max(abs(problem.loss(state)), 1e-12)


def _fitting(problem: Problem, states: Iterable[State]) -> list[State]:
    """Return the best of some choices, of those that keep the budget."""
    return sorted((s for s in states if problem.fits(s)), key=problem.loss)[:_NEAR]


def _alive(dual: Dual, least: float) -> list[np.ndarray]:
    """Drop the levels with which no choice is as good as one that is known."""
    return [np.flatnonzero(bound <= least) for bound in dual.marginals]
