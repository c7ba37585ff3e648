"""Widths that hardware likes: every axis that a product runs over keeps a multiple of a number.

What counts is the length of an axis. A head of 64 positions is 64 of them, so any number of heads
will do for a multiple of 8; a convolution's channels may be several groups that go different ways,
and are counted together. Only tensors that a product reads directly are looked at: a table with one
bias for each head binds no hardware. Nor does an axis inside a conv group, short by design.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd, lcm

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from prunella.coupling.counting import Cluster
from prunella.errors import ConfigError
from prunella.graph import refs
from prunella.plan import Axis, Groups, nearest

MultipleOf = int | Mapping[str, int]
"""A number for all groups, or one by group name; groups that are not named are free."""


@dataclass(frozen=True, eq=False)
class Multiples:
    """What the counts of a cluster's atoms have to be multiples of.

    `rows @ counts` is a multiple of `of`, or all there is: int, `[rows, atoms]` and `[rows]`.
    """

    rows: np.ndarray
    of: np.ndarray

    def hold(self, cluster: Cluster, counts: np.ndarray) -> bool:
        """Say whether counts are multiples."""
        kept = self.rows @ counts
        return bool(((kept % self.of == 0) | (kept == self.rows @ cluster.sizes())).all())


def multiples(
    groups: Groups, clusters: tuple[Cluster, ...], multiple_of: MultipleOf
) -> list[Multiples]:
    """Say for every cluster what its counts have to be multiples of.

    Raises:
        ConfigError: A number is below 1, or a group is unknown.
    """
    asked = _asked(groups, multiple_of)
    if max(asked.values(), default=1) == 1:
        return [
            Multiples(np.zeros((0, len(c.atoms)), dtype=int), np.zeros(0, dtype=int))
            for c in clusters
        ]
    products = {term.node for term in groups.terms}
    nodes = (node for node in groups.graph.nodes if node.name in products)
    values = groups.graph.values
    read = {values[ref.name].source for node in nodes for ref in refs((node.args, node.kwargs))}
    inside = np.full(groups.channels + 1, -1)  # by channel: its atom in the cluster at hand
    made = []
    for cluster in clusters:
        for i, atom in enumerate(cluster.atoms):
            inside[atom.channels] = i
        made.append(_multiples(groups, cluster, asked, read, inside))
        for atom in cluster.atoms:
            inside[atom.channels] = -1
    return made


def _asked(groups: Groups, multiple_of: MultipleOf) -> dict[str, int]:
    known = [group.name for group in groups]
    if isinstance(multiple_of, Mapping):
        for name in multiple_of:
            if name not in known:
                raise ConfigError(f"no group called {name!r}{nearest(name, known)}")
        asked = {name: multiple_of.get(name, 1) for name in known}
    else:
        asked = dict.fromkeys(known, multiple_of)
    for number in asked.values():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ConfigError(f"multiple_of is a whole number of channels >= 1, got {number!r}")
    return asked


def _multiples(
    groups: Groups, cluster: Cluster, asked: Mapping[str, int], read: set[str], inside: np.ndarray
) -> Multiples:
    axes: dict[Axis, int] = {}
    for name in cluster.groups:
        for axis in groups[name].axes:
            axes[axis] = lcm(axes.get(axis, 1), asked[name])
    flat = {axis: n for axis, n in axes.items() if groups.axes[axis].ndim == 1}
    found = {axis: n for axis, n in flat.items() if axis.tensor in read} or flat
    rows: dict[tuple[int, ...], int] = {}
    for axis, number in found.items():
        present = inside[groups.axes[axis]]
        slices = np.bincount(present[present >= 0], minlength=len(cluster.atoms))
        row = tuple((slices // cluster.sizes()).tolist())  # of every channel
        if gcd(*row) % number:  # else it is a multiple, whatever is kept
            rows[row] = lcm(rows.get(row, 1), number)
    shape = (-1, len(cluster.atoms))
    return Multiples(
        np.array(list(rows), dtype=int).reshape(shape), np.array(list(rows.values()), dtype=int)
    )


def step_of(multiples: Multiples) -> int:
    """Return of which number the only atom of a cluster keeps a multiple."""
    pairs = zip(multiples.rows[:, 0].tolist(), multiples.of.tolist(), strict=True)
    return lcm(*(number // gcd(number, times) for times, number in pairs))


def nearest_multiples(
    cluster: Cluster, wanted: np.ndarray, multiples: Multiples
) -> np.ndarray | None:
    """Return the multiples nearest to the wanted counts of atoms, None if there are none.

    Minimises the sum of |count - wanted| over integers: counts, and for each row how many times the
    number it is and whether it stays whole; a slack for each |.|.
    """
    sizes, n, r = cluster.sizes(), len(cluster.atoms), len(multiples.rows)
    times, rest = np.divmod(multiples.rows @ sizes, multiples.of)
    eye, none = np.eye(n), np.zeros((n, 2 * r))
    least = np.minimum(cluster.least, cluster.axes @ sizes)

    def of_counts(matrix: np.ndarray) -> np.ndarray:
        return np.hstack([matrix, np.zeros((len(matrix), n + 2 * r))])

    constraints = [
        LinearConstraint(np.hstack([eye, -eye, none]), ub=wanted),
        LinearConstraint(np.hstack([-eye, -eye, none]), ub=-wanted),
        # kept = number * times + rest * whole, and what is whole is so all its times
        LinearConstraint(
            np.hstack([multiples.rows, np.zeros((r, n)), -np.diag(multiples.of), -np.diag(rest)]),
            0,
            0,
        ),
        LinearConstraint(np.hstack([np.zeros((r, 2 * n)), np.eye(r), -np.diag(times)]), lb=0),
    ]
    if len(cluster.equal):
        offset = -cluster.offset
        constraints.append(LinearConstraint(of_counts(cluster.equal), offset, offset))
    if len(cluster.axes):
        constraints.append(LinearConstraint(of_counts(cluster.axes), lb=least))
    found = milp(
        np.concatenate([np.zeros(n), np.ones(n), np.zeros(2 * r)]),
        integrality=np.concatenate([np.ones(n), np.zeros(n), np.ones(2 * r)]),
        bounds=Bounds(0, np.concatenate([sizes, np.full(n, np.inf), times, np.ones(r)])),
        constraints=constraints,
        options={"time_limit": 10},
    )
    return None if found.x is None else np.asarray(np.round(found.x[:n]), dtype=int)
