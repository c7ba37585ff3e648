"""Widths that hardware likes: every axis that a product runs over keeps a multiple of a number."""

from collections.abc import Mapping
from math import gcd, lcm

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from prunella.counting import Cluster
from prunella.errors import ConfigError
from prunella.graph import refs
from prunella.plan import Group, Groups, nearest

MultipleOf = int | Mapping[str, int]
"""A number for all groups, or one by group name; groups that are not named are free."""


def channel_steps(groups: Groups, multiple_of: MultipleOf) -> dict[str, int]:
    """Say of which number every group keeps a multiple of channels, 1 where it is free.

    What counts is the length of an axis: a head of 64 positions is 64 of them, so any number of
    heads will do for a multiple of 8. Only tensors that a product reads directly are looked at; a
    table of one bias for each head binds no hardware.

    Raises:
        ConfigError: A number is below 1, or a group is unknown.
    """
    known = [group.name for group in groups]
    if isinstance(multiple_of, Mapping):
        asked = {name: multiple_of.get(name, 1) for name in known}
        for name in multiple_of:
            if name not in known:
                raise ConfigError(f"no group called {name!r}{nearest(name, known)}")
    else:
        asked = dict.fromkeys(known, multiple_of)
    for number in asked.values():
        if isinstance(number, bool) or number != int(number) or number < 1:
            raise ConfigError(f"multiple_of is a whole number of channels >= 1, got {number!r}")
    if max(asked.values(), default=1) == 1:
        return asked
    read = _read_by_products(groups)
    return {group.name: _step(groups, group, asked[group.name], read) for group in groups}


def _read_by_products(groups: Groups) -> set[str]:
    products = {term.node for term in groups.terms}
    nodes = (node for node in groups.graph.nodes if node.name in products)
    values = groups.graph.values
    return {values[ref.name].source for node in nodes for ref in refs((node.args, node.kwargs))}


def _step(groups: Groups, group: Group, multiple: int, read: set[str]) -> int:
    # Inside a conv group there are fewer channels by design: its own axis is not looked at.
    slices = {
        axis: positions.shape[1]
        for axis, positions in group.axes.items()
        if groups.axes[axis].ndim == 1
    }
    found = [n for axis, n in slices.items() if axis.tensor in read] or list(slices.values())
    return lcm(*(multiple // gcd(multiple, n) for n in found))


def aligned(cluster: Cluster, counts: np.ndarray, steps: Mapping[str, int]) -> bool:
    """Say whether every group of a cluster keeps a multiple of its step, or all of its channels."""
    sizes = cluster.sizes()
    for name in cluster.groups:
        mine = np.array([atom.group == name for atom in cluster.atoms])
        kept = int(counts[mine].sum())
        if kept % steps[name] and kept != sizes[mine].sum():
            return False
    return True


def nearest_aligned(
    cluster: Cluster, wanted: np.ndarray, steps: Mapping[str, int]
) -> np.ndarray | None:
    """Return the multiples nearest to the wanted counts of atoms, None if there are none.

    Minimises the sum of |count - wanted| over integers: counts, and for each group how many steps
    it keeps and whether it stays whole; a slack for each |.|.
    """
    sizes, n, g = cluster.sizes(), len(cluster.atoms), len(cluster.groups)
    of_group = np.array([[atom.group == name for atom in cluster.atoms] for name in cluster.groups])
    step = np.array([steps[name] for name in cluster.groups])
    whole, rest = np.divmod(of_group @ sizes, step)
    eye, none = np.eye(n), np.zeros((n, 2 * g))
    free = np.zeros((len(cluster.equal), n + 2 * g))
    axes = np.zeros((len(cluster.axes), n + 2 * g))
    least = np.minimum(cluster.least, cluster.axes @ sizes)
    constraints = [
        LinearConstraint(np.hstack([eye, -eye, none]), ub=wanted),
        LinearConstraint(np.hstack([-eye, -eye, none]), ub=-wanted),
        # kept = step * steps + rest * whole, and what is whole keeps all of its steps
        LinearConstraint(
            np.hstack([of_group, np.zeros((g, n)), -np.diag(step), -np.diag(rest)]), 0, 0
        ),
        LinearConstraint(np.hstack([np.zeros((g, 2 * n)), np.eye(g), -np.diag(whole)]), lb=0),
    ]
    if len(cluster.equal):
        offset = -cluster.offset
        constraints.append(LinearConstraint(np.hstack([cluster.equal, free]), offset, offset))
    if len(cluster.axes):
        constraints.append(LinearConstraint(np.hstack([cluster.axes, axes]), lb=least))
    found = milp(
        np.concatenate([np.zeros(n), np.ones(n), np.zeros(2 * g)]),
        integrality=np.concatenate([np.ones(n), np.zeros(n), np.ones(2 * g)]),
        bounds=Bounds(0, np.concatenate([sizes, np.full(n, np.inf), whole, np.ones(g)])),
        constraints=constraints,
        options={"time_limit": 10},
    )
    return None if found.x is None else np.asarray(np.round(found.x[:n]), dtype=int)
