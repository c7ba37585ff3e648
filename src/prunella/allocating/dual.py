"""What a unit of each cost is worth, and how little damage is possible at all.

With a price on every cost in place of its limit, the best levels can be found exactly where the
network hangs together loosely enough (`elimination`). Their damage plus what they owe is a lower
bound on the damage of every choice that keeps the budget, at any prices; the best prices are found
by cutting planes (Kelley 1960, "The cutting-plane method for solving convex programs").
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linprog

from prunella.allocating import elimination
from prunella.allocating.problem import Problem, State

_ROUNDS = 60
_TABLE = 1 << 20  # entries of the largest table


@dataclass(frozen=True, eq=False)
class Dual:
    """The best prices found.

    Attributes:
        prices: Of every cost, in units of damage for its whole limit.
        bound: No choice within the budget does less damage.
        states: The best levels at each price that was tried.
        marginals: For every level of every cluster, a bound on what all choices with it do.
        near: The choices that gave these.
    """

    prices: np.ndarray
    bound: float
    states: tuple[State, ...]
    marginals: tuple[np.ndarray, ...] = ()
    near: tuple[State, ...] = field(default=(), repr=False)


def tractable(problem: Problem) -> bool:
    """Say whether levels that are best at given prices can be found exactly."""
    scopes = problem.bill.costs.scopes()
    return elimination.order(scopes, problem.sizes, 0, _TABLE) is not None


def solve_dual(problem: Problem, known: Iterable[State]) -> Dual:
    """Find the prices at which the bound is best, and what it says about every level.

    Args:
        problem: A tractable problem.
        known: Choices to begin with; one of them keeps the budget.
    """
    states = list(dict.fromkeys(known))
    scopes = problem.bill.costs.scopes()
    sequence = elimination.order(scopes, problem.sizes, 0, _TABLE)
    assert sequence is not None, "the problem is tractable"
    losses = [problem.loss(state) for state in states]
    overs = [problem.over(state) for state in states]
    best, bound = np.zeros(len(problem.bill.limits)), -np.inf
    for _ in range(_ROUNDS):
        prices, ceiling = _prices(np.array(losses), np.stack(overs))
        fixed, tables = problem.energy(prices)
        last, choices = elimination.eliminate(tables, sequence)
        value = fixed + float(last.min())
        if value > bound:
            best, bound = prices, value
        state = tuple(elimination.chosen(choices, sequence[-1], int(last.argmin())))
        if state in states or ceiling - bound <= 1e-9 * max(abs(ceiling), 1e-12):
            break
        states.append(state)
        losses.append(problem.loss(state))
        overs.append(problem.over(state))
    marginals, near = _marginals(problem, best)
    return Dual(best, bound, tuple(states), marginals, near)


def _prices(losses: np.ndarray, overs: np.ndarray) -> tuple[np.ndarray, float]:
    """Maximise the least of loss + prices @ over among known choices."""
    scale = max(float(np.abs(losses).max()), 1e-12)
    n = overs.shape[1]
    found = linprog(
        np.append(np.zeros(n), -1.0),
        A_ub=np.hstack([-overs, np.ones((len(losses), 1))]),
        b_ub=losses / scale,
        bounds=[(0, 1e6)] * n + [(None, None)],
    )
    return found.x[:n] * scale, float(found.x[n]) * scale


def _marginals(
    problem: Problem, prices: np.ndarray
) -> tuple[tuple[np.ndarray, ...], tuple[State, ...]]:
    fixed, tables = problem.energy(prices)
    marginals, near = [], []
    for c in range(len(problem.sizes)):
        sequence = elimination.order(tables, problem.sizes, c, _TABLE * 64)
        assert sequence is not None, "the same problem with another end"
        last, choices = elimination.eliminate(tables, sequence)
        marginals.append(fixed + last)
        near += [tuple(elimination.chosen(choices, c, i)) for i in range(len(last))]
    return tuple(marginals), tuple(dict.fromkeys(near))
