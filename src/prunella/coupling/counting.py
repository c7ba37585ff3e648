"""How many channels each group may keep, so that everything that binds them holds.

Grouped convolutions and shuffles ask that rows of channels keep equally many. Channels of one
group that sit in the same rows are interchangeable: an *atom*. A feasible choice is an integer for
every atom; the one nearest to what was asked is found exactly, per cluster of bound groups, with
SciPy's HiGHS solver.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from prunella.errors import CouplingError
from prunella.labels.ragged import Ragged, sorted_by
from prunella.plan import Blocks, Group, Groups

Membership = tuple[tuple[int, int, int], ...]
"""The rows something is in: (index of the blocks, row, how often)."""

AtomKey = tuple[str, Membership]


@dataclass(frozen=True, eq=False)
class Atom:
    """Interchangeable channels: members of one group, in the same rows of the same blocks.

    `rows` says which: (index of the blocks, row, how often). `channels` are numbers. `ties` are the
    indices of blocks that only the model's own code asks for.
    """

    group: str
    rows: Membership
    channels: np.ndarray
    ties: frozenset[int] = frozenset()

    @property
    def key(self) -> AtomKey:
        """Return what identifies the atom among what the network itself binds."""
        return self.group, tuple(row for row in self.rows if row[0] not in self.ties)


@dataclass(frozen=True, eq=False)
class Cluster:
    """Groups that are bound to one another, as few as can be decided on their own.

    `equal` is an integer matrix over atoms, `offset` a vector: `equal @ counts + offset` is zero
    (the offset stems from frozen channels in a row). `moved` says that a movement operator cuts
    rows of the cluster apart. `axes @ counts`
    is at least `least`, so that no axis is emptied.
    """

    groups: tuple[str, ...]
    atoms: tuple[Atom, ...]
    moved: bool
    equal: np.ndarray
    offset: np.ndarray
    axes: np.ndarray

    def binds(self, counts: np.ndarray) -> bool:
        """Say whether counts satisfy everything that binds the cluster."""
        balanced = not (self.equal @ counts + self.offset).any()
        return balanced and bool((self.axes @ counts >= self.least).all())

    @property
    def least(self) -> int:
        """Return how many channels every axis keeps: two where rows are moved, else one.

        A dimension of size one no longer shows how its rows are cut and moved.
        """
        return 2 if self.moved else 1

    def sizes(self) -> np.ndarray:
        """Return how many channels every atom has."""
        return np.array([len(atom.channels) for atom in self.atoms])


def clusters(groups: Groups) -> tuple[Cluster, ...]:
    """Sort the groups that may be cut into clusters."""
    bound = _bound(groups)
    atoms: dict[str, list[Atom]] = defaultdict(list)
    for atom in _atoms(groups):
        atoms[atom.group].append(atom)
    members: dict[int, list[Group]] = defaultdict(list)
    for cluster, group in zip(bound.tolist(), groups, strict=True):
        members[cluster].append(group)
    inside = np.full(groups.channels + 1, -1)  # by channel: its atom in the cluster at hand
    made: list[Cluster] = []
    for found in members.values():
        mine = [atom for group in found for atom in atoms[group.name]]
        for i, atom in enumerate(mine):
            inside[atom.channels] = i
        made.append(_cluster(groups, found, mine, inside))
        for atom in mine:
            inside[atom.channels] = -1
    return tuple(made)


def _bound(groups: Groups) -> np.ndarray:
    """Number the clusters: `[groups]` -> cluster. Groups share one through rows or a whole axis."""
    owner = _owner(groups)
    pairs: list[tuple[int, int]] = []
    for block in groups.blocks:
        found = np.unique(owner[block.rows])
        found = found[found >= 0]
        pairs += [(int(found[0]), int(other)) for other in found[1:]]
    n = len(groups)
    rows, columns = zip(*pairs, strict=True) if pairs else ((), ())
    _, cluster = connected_components(
        csr_array((np.ones(len(pairs)), (rows, columns)), shape=(n, n)), directed=False
    )
    return np.asarray(cluster)


def _owner(groups: Groups) -> np.ndarray:
    """Map every channel number, and -1, to the index of its group; what may not be cut to -1.

    What was frozen by trying (`probing`) keeps its numbers, among those of what may be cut.
    """
    owner = np.full(groups.channels + 1, -1)
    for i, group in enumerate(groups):
        owner[group.start : group.start + group.channels] = i
    return owner


def membership(
    blocks: Sequence[tuple[int, np.ndarray]], count: int
) -> tuple[Ragged, Callable[[np.ndarray], Membership]]:
    """Say in which rows each of the numbers below `count` is.

    Args:
        blocks: Index and rows, `[rows, size]`, of every constraint.
        count: Numbers that are not below it, and negative ones, are left out.

    Returns:
        A row of codes for every number, and what decodes such a row.
    """
    owners: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
    codes: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
    lines: list[tuple[int, int]] = []  # (index of the blocks, row)
    most = 1 + max((rows.shape[1] for _, rows in blocks), default=0)
    for b, rows in blocks:
        number, size = rows.astype(np.int64), len(rows)
        line = np.broadcast_to(np.arange(size)[:, None], rows.shape)
        known = (number >= 0) & (number < count)
        found, times = np.unique(number[known] * size + line[known], return_counts=True)
        owners.append(found // size)
        codes.append((len(lines) + found % size) * most + times)
        lines += [(b, r) for r in range(size)]

    def decode(row: np.ndarray) -> Membership:
        return tuple((*lines[code // most], code % most) for code in row.tolist())

    return sorted_by(np.concatenate(owners), np.concatenate(codes), count), decode


def _atoms(groups: Groups) -> list[Atom]:
    """Sort the channels that may be cut into atoms, group by group."""
    owner = _owner(groups)
    rows, decode = membership(
        [(b, block.rows) for b, block in enumerate(groups.blocks)], groups.channels
    )
    ties = frozenset(b for b, block in enumerate(groups.blocks) if block.tie)
    return [
        Atom(groups.prunable[owner[found[0]]].name, decode(rows.row(found[0])), found, ties)
        for found in rows.alike(owner[:-1])
        if owner[found[0]] >= 0
    ]


def _cluster(
    groups: Groups, found: Sequence[Group], atoms: Sequence[Atom], inside: np.ndarray
) -> Cluster:
    bound = sorted({b for atom in atoms for b, _, _ in atom.rows})
    counts = {b: np.zeros((len(groups.blocks[b].rows), len(atoms)), dtype=int) for b in bound}
    for i, atom in enumerate(atoms):
        for b, r, times in atom.rows:
            counts[b][r, i] = times
    equal = [np.zeros((0, len(atoms)), dtype=int)]
    offset = [np.zeros(0, dtype=int)]
    for b in bound:
        # What is in a row beside the cluster's channels is frozen.
        frozen = (inside[groups.blocks[b].rows] < 0).sum(1)
        equal.append(counts[b][1:] - counts[b][0])
        offset.append(frozen[1:] - frozen[0])
    blocks = [groups.blocks[b] for b in bound]
    return Cluster(
        tuple(group.name for group in found),
        tuple(atoms),
        any(block.moved for block in blocks),
        np.concatenate(equal),
        np.concatenate(offset),
        _axis_rows(groups, found, blocks, len(atoms), inside),
    )


def _axis_rows(
    groups: Groups, found: Sequence[Group], blocks: Sequence[Blocks], n: int, inside: np.ndarray
) -> np.ndarray:
    """Return which atoms keep each axis (or each conv group's part of it) from being emptied."""
    axes = dict.fromkeys(axis for group in found for axis in group.axes)
    parts = [part for axis in axes for part in np.atleast_2d(groups.axes[axis])]
    parts += [row for block in blocks if block.moved for row in block.rows]
    rows: dict[bytes, np.ndarray] = {}
    for part in parts:
        present = inside[part]
        if (present >= 0).all():  # else channels outside the cluster are on it too
            present = np.bincount(present, minlength=n).clip(max=1)
            rows[present.tobytes()] = present
    return np.array(list(rows.values()), dtype=int).reshape(-1, n)


def nearest_counts(cluster: Cluster, ratios: Mapping[str, float]) -> np.ndarray:
    """Return how many channels every atom keeps, as near to the asked ratios as can be.

    Args:
        cluster: A cluster.
        ratios: For every group of the cluster the share of channels to remove, in [0, 1].

    Returns:
        Kept channels by atom; at least one on every axis, equally many in bound rows.
    """
    sizes = cluster.sizes()
    wanted = np.array([1 - ratios[atom.group] for atom in cluster.atoms]) * sizes
    if len({*ratios.values()}) == 1 and len({*sizes.tolist()}) == 1:
        # Equal atoms asked equally: rounding keeps bound rows equal.
        counts = np.full(len(sizes), int(np.floor(wanted[0] + 0.5)))
        for rounded in (counts, np.maximum(counts, cluster.least)):
            if cluster.binds(rounded):
                return rounded
    return _solve(cluster, sizes, wanted)


def _solve(cluster: Cluster, sizes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Minimise the sum of |count - wanted|: integers `count`, and one slack each for the |.|."""
    n = len(sizes)
    eye = np.eye(n)
    constraints = [
        LinearConstraint(np.hstack([eye, -eye]), ub=wanted),
        LinearConstraint(np.hstack([-eye, -eye]), ub=-wanted),
    ]
    if len(cluster.equal):
        pad = np.zeros_like(cluster.equal)
        balance = np.hstack([cluster.equal, pad])
        constraints.append(LinearConstraint(balance, -cluster.offset, -cluster.offset))
    if len(cluster.axes):
        pad = np.zeros_like(cluster.axes)
        least = np.minimum(cluster.least, cluster.axes @ sizes)
        constraints.append(LinearConstraint(np.hstack([cluster.axes, pad]), least, np.inf))
    for presolve in (True, False):  # HiGHS fails in presolving some problems that it solves
        found = milp(
            np.concatenate([np.zeros(n), np.ones(n)]),
            integrality=np.concatenate([np.ones(n), np.zeros(n)]),
            bounds=Bounds(np.zeros(2 * n), np.concatenate([sizes, np.full(n, np.inf)])),
            constraints=constraints,
            options={"mip_rel_gap": 0.02, "time_limit": 10, "presolve": presolve},
        )
        if found.x is not None:
            return np.asarray(np.round(found.x[:n]), dtype=int)
    raise CouplingError(
        f"no choice of channels satisfies what binds {', '.join(cluster.groups[:5])}: "
        f"{found.message}; exclude these modules"
    )
