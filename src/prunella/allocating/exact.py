"""The best levels, proven: a mixed-integer program over those that may still be part of them.

A binary variable says for every level of a cluster whether it is taken. Where a cost depends on two
clusters at once, a variable for each pair of their levels is one where both are taken; held to sums
(the local polytope) they leave the relaxation as tight as the bound by prices. SciPy's HiGHS
branches, bounds and proves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from prunella.allocating.problem import Problem, State
from prunella.costs.ladders import Scope

_NODES = 2_000
_UNIT = 1e6  # a limit above this is scaled to it
_ATTEMPTS = 3

Alive = Sequence[np.ndarray]
"""The levels of every cluster that are not ruled out."""


@dataclass(frozen=True, slots=True)
class Found:
    """The best state, None where there is none; nothing is below `bound`."""

    state: State | None
    bound: float


def columns(problem: Problem, alive: Alive) -> int:
    """Count the variables that the program would have."""
    pairs = (
        np.prod([len(alive[c]) for c in scope])
        for scope in problem.bill.costs.scopes()
        if sum(len(alive[c]) > 1 for c in scope) > 1
    )
    return int(sum(len(levels) for levels in alive) + sum(pairs))


def solve_exactly(problem: Problem, alive: Alive, seconds: float) -> Found:
    """Find the state of least loss among the levels that are left.

    Args:
        problem: What is to be decided.
        alive: The levels that are left.
        seconds: When to give up; the bound then says how far it came.
    """
    program = _program(problem, alive)
    bound, slack = np.inf, 0.5
    for _ in range(_ATTEMPTS):
        found = milp(
            program.objective,
            integrality=program.integral,
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(program.equal, program.equals, program.equals),
                LinearConstraint(program.costs, ub=program.limits + slack * program.units),
            ],
            options={"time_limit": seconds, "node_limit": _NODES, "mip_rel_gap": 0.0},
        )
        if found.status == 2:  # infeasible: what is known already is the best
            return Found(None, bound)
        below = -np.inf if found.mip_dual_bound is None else float(found.mip_dual_bound)
        # Later attempts leave out choices at the very limit, of which their bound says nothing.
        bound = min(bound, below / program.scale)
        if found.x is None:
            return Found(None, bound)
        state = program.read(found.x, alive)
        if problem.fits(state):
            return Found(state, bound)
        slack -= 1.0  # rounding let it exceed a limit by a hair
    return Found(None, bound)


@dataclass(frozen=True, eq=False)
class _Program:
    objective: np.ndarray
    integral: np.ndarray
    equal: coo_array
    equals: np.ndarray
    costs: np.ndarray
    limits: np.ndarray
    units: np.ndarray
    starts: list[int]
    scale: float

    def read(self, x: np.ndarray, alive: Alive) -> State:
        return tuple(
            int(levels[x[start : start + len(levels)].argmax()])
            for start, levels in zip(self.starts, alive, strict=True)
        )


def _program(problem: Problem, alive: Alive) -> _Program:
    starts = np.cumsum([0, *(len(levels) for levels in alive)]).tolist()
    fixed, tables = _tables(problem, alive)
    binary = starts[-1]
    size = binary + sum(t[0].size for s, t in tables.items() if len(s) > 1)
    costs = np.zeros((len(problem.bill.limits), size))
    rows: list[np.ndarray] = []
    entries: list[np.ndarray] = []
    values: list[np.ndarray] = []
    equals: list[float] = []

    def add(one: np.ndarray, minus: int | None) -> None:
        rows.append(np.full(len(one) + (minus is not None), len(equals)))
        entries.append(one if minus is None else np.append(one, minus))
        values.append(np.ones(len(one)) if minus is None else np.append(np.ones(len(one)), -1))
        equals.append(1.0 if minus is None else 0.0)

    for c, levels in enumerate(alive):
        add(np.arange(starts[c], starts[c] + len(levels)), None)
    place = binary
    for scope, table in tables.items():
        flat = table.reshape(len(table), -1)
        if len(scope) == 1:
            costs[:, starts[scope[0]] : starts[scope[0]] + flat.shape[1]] += flat
            continue
        costs[:, place : place + flat.shape[1]] = flat
        number = place + np.arange(flat.shape[1]).reshape(table.shape[1:])
        for axis, c in enumerate(scope):
            for i, found in enumerate(np.moveaxis(number, axis, 0)):
                add(found.reshape(-1), starts[c] + i)
        place += flat.shape[1]
    losses = np.concatenate([problem.losses[c][levels] for c, levels in enumerate(alive)])
    scale = 1e3 / max(float(np.abs(losses).max()), 1e-12)
    limits = problem.bill.limits - fixed
    units = _UNIT / problem.scale.clip(min=_UNIT)
    shape = (len(equals), size)
    index = (np.concatenate(rows), np.concatenate(entries))
    return _Program(
        np.concatenate([losses * scale, np.zeros(size - binary)]),
        np.concatenate([np.ones(binary), np.zeros(size - binary)]),
        coo_array((np.concatenate(values), index), shape=shape).tocsr(),
        np.array(equals),
        costs * units[:, None],
        limits * units,
        units,
        starts[:-1],
        scale,
    )


def _tables(problem: Problem, alive: Alive) -> tuple[np.ndarray, dict[Scope, np.ndarray]]:
    """Write every cost over what is left: `[costs]` that is fixed, and `[costs, levels, ...]`."""
    fixed, parts = problem.parts
    factors = problem.bill.costs.factors
    constant = factors @ fixed
    tables: dict[Scope, np.ndarray] = {}
    for scope, (terms, made) in parts.items():
        left = made[np.ix_(np.arange(len(made)), *(alive[c] for c in scope))]
        table = np.tensordot(factors[:, terms], left, 1)
        open_ = tuple(c for c in scope if len(alive[c]) > 1)
        table = table.reshape(len(table), *(len(alive[c]) for c in open_))
        if not open_:
            constant = constant + table
        else:
            tables[open_] = tables[open_] + table if open_ in tables else table
    return constant, tables
