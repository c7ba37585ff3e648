"""What a unit of each cost is worth, and how little damage is possible at all.

With a price on every cost in place of its limit, the best levels can be found: exactly where the
network hangs together loosely enough (`elimination`), else by a descent that a second bound checks
(`messages`). The least damage plus what is owed is a lower bound on the damage of every choice that
keeps the budget, at any prices; the best prices are found by cutting planes (Kelley 1960, "The
cutting-plane method for solving convex programs").
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linprog

from prunella.allocating import elimination
from prunella.allocating.messages import Messages
from prunella.allocating.problem import Problem, State

_ROUNDS = 60
_SWEEPS = 10
_TABLE = 1 << 20  # entries of the largest table
_ENTRIES = 1 << 25  # of all tables together
_CLOSE, _ENOUGH = 1e-9, 1e-4  # of the damage: what prices are sought to, and checked to
_CHECKS = 4  # how often a descent's prices are checked, and found anew


@dataclass(frozen=True, eq=False)
class Dual:
    """The best prices found.

    Attributes:
        bound: No choice within the budget does less damage; minus infinity where none is known.
        marginals: For every level of every cluster, a bound on what all choices with it do.
        states: Good choices that came up, within the budget or not.
    """

    bound: float
    marginals: tuple[np.ndarray, ...]
    states: tuple[State, ...]


@dataclass(eq=False)
class _Cuts:
    """Choices found so far, each of which bounds what prices can do."""

    problem: Problem
    states: list[State] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    overs: list[np.ndarray] = field(default_factory=list)

    def add(self, state: State) -> bool:
        """Take a choice in; say whether it is new."""
        if state in self.states:
            return False
        self.states.append(state)
        self.losses.append(self.problem.loss(state))
        self.overs.append(self.problem.over(state))
        return True

    def prices(self) -> tuple[np.ndarray, float]:
        """Return the prices that maximise the least of loss + prices @ over, and this maximum."""
        losses, overs = np.array(self.losses), np.stack(self.overs)
        scale, n = max(float(np.abs(losses).max()), 1e-12), overs.shape[1]
        found = linprog(
            np.append(np.zeros(n), -1.0),
            A_ub=np.hstack([-overs, np.ones((len(losses), 1))]),
            b_ub=losses / scale,
            bounds=[(0, 1e6)] * n + [(None, None)],
        )
        return found.x[:n] * scale, float(found.x[n]) * scale

    def settle(self, seek: Callable[[np.ndarray], State]) -> np.ndarray:
        """Ask for the best choice at ever better prices until nothing is new; return these."""
        best, highest = np.zeros(len(self.overs[0])), -np.inf
        for _ in range(_ROUNDS):
            prices, ceiling = self.prices()
            state = seek(prices)
            value = self.problem.loss(state) + float(prices @ self.problem.over(state))
            if value > highest:
                best, highest = prices, value
            if not self.add(state) or ceiling - value <= _CLOSE * max(abs(ceiling), 1e-12):
                break
        return best


def solve_dual(problem: Problem, known: Iterable[State]) -> Dual:
    """Find the prices at which the bound is best, and what it says about every level.

    Args:
        problem: What is to be decided.
        known: Choices to begin with; the first keeps the budget.
    """
    cuts = _Cuts(problem)
    for state in known:
        cuts.add(state)
    scopes = problem.bill.costs.scopes()
    sequence = elimination.order(scopes, problem.sizes, 0, _TABLE)
    if sequence is not None:
        return _eliminated(problem, cuts, sequence)
    entries = sum(np.prod([problem.sizes[c] for c in scope]) for scope in scopes)
    if entries <= _ENTRIES and all(len(scope) < 3 for scope in scopes):
        return _checked(problem, cuts)
    cuts.settle(lambda prices: _descend(problem, prices, cuts.states[0]))
    nothing = tuple(np.full(n, -np.inf) for n in problem.sizes)
    return Dual(-np.inf, nothing, tuple(cuts.states))


def _eliminated(problem: Problem, cuts: _Cuts, sequence: list[int]) -> Dual:
    def seek(prices: np.ndarray) -> State:
        _, tables = problem.energy(prices)
        last, choices = elimination.eliminate(tables, sequence)
        return tuple(elimination.chosen(choices, sequence[-1], int(last.argmin())))

    fixed, tables = problem.energy(cuts.settle(seek))
    marginals, near = [], list(cuts.states)
    for c in range(len(problem.sizes)):
        order = elimination.order(tables, problem.sizes, c, _TABLE * _TABLE)
        assert order is not None, "any order will do"
        last, choices = elimination.eliminate(tables, order)
        marginals.append(fixed + last)
        near += [tuple(elimination.chosen(choices, c, i)) for i in range(len(last))]
    bound = max(float(found.min()) for found in marginals)
    return Dual(bound, tuple(marginals), tuple(dict.fromkeys(near)))


def _checked(problem: Problem, cuts: _Cuts) -> Dual:
    """Descend, and let messages bound what a descent may miss; what they choose is a new cut."""
    dual = Dual(-np.inf, (), ())
    for _ in range(_CHECKS):
        prices = cuts.settle(lambda prices: _descend(problem, prices, cuts.states[0]))
        fixed, tables = problem.energy(prices)
        messages = Messages(tables, problem.sizes)
        messages.run()
        bound, marginals = messages.bound()
        if fixed + bound > dual.bound:
            dual = Dual(fixed + bound, tuple(fixed + found for found in marginals), ())
        _, ceiling = cuts.prices()
        new = cuts.add(_descend(problem, prices, tuple(messages.choose())))
        if not new or ceiling - dual.bound <= _ENOUGH * abs(ceiling):
            break
    return Dual(dual.bound, dual.marginals, tuple(cuts.states))


def _descend(problem: Problem, prices: np.ndarray, state: State) -> State:
    """Move one cluster after the other to its best level at given prices, until all stay."""
    costs, weights, at = problem.bill.costs, prices / problem.scale, list(state)
    costs.put(at)
    for _ in range(_SWEEPS):
        before = at.copy()
        for c, loss in enumerate(problem.losses):
            owed = weights @ costs.along(c) + loss
            best = int(owed.argmin())
            if owed[best] < owed[at[c]]:
                at[c] = best
                costs.move(c, best)
        if at == before:
            break
    return tuple(at)
