"""How many channels each group may keep, so that everything that binds them holds.

Grouped convolutions and shuffles ask that rows of channels keep equally many. Channels of one
group that sit in the same rows are interchangeable: an *atom*. A feasible choice is an integer for
every atom; the one nearest to what was asked is found exactly, per cluster of bound groups, with
SciPy's HiGHS solver.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from prunella.errors import CouplingError
from prunella.plan import Blocks, Group, Groups

AtomKey = tuple[str, tuple[tuple[int, int, int], ...]]


@dataclass(frozen=True, eq=False)
class Atom:
    """Interchangeable channels: members of one group, in the same rows of the same blocks.

    `rows` says which: (index of the blocks, row, how often). `channels` are numbers. `ties` are the
    indices of blocks that only the model's own code asks for.
    """

    group: str
    rows: tuple[tuple[int, int, int], ...]
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
    for atom in atoms_of(groups):
        atoms[atom.group].append(atom)
    by_cluster: dict[int, list[int]] = defaultdict(list)
    for i in range(len(groups)):
        by_cluster[bound[i]].append(i)
    members = [tuple(groups.prunable[i] for i in found) for found in by_cluster.values()]
    return tuple(_cluster(groups, found, [a for g in found for a in atoms[g.name]])
                 for found in members)  # fmt: skip


def _owner(groups: Groups) -> np.ndarray:
    """Map every channel number, and -1, to the index of its group; what is in none to -1."""
    owner = np.full(groups.channels + 1, -1)
    for i, group in enumerate(groups):
        owner[group.start : group.start + group.channels] = i
    return owner


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


def atoms_of(groups: Groups) -> list[Atom]:
    """Sort the channels that may be cut into atoms, group by group."""
    membership: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for b, block in enumerate(groups.blocks):
        for r, row in enumerate(block.rows):
            for channel, times in zip(*np.unique(row, return_counts=True), strict=True):
                membership[int(channel)].append((b, r, int(times)))
    atoms: list[Atom] = []
    ties = frozenset(b for b, block in enumerate(groups.blocks) if block.tie)
    for group in groups:
        alike: dict[tuple[tuple[int, int, int], ...], list[int]] = defaultdict(list)
        for number in range(group.start, group.start + group.channels):
            alike[tuple(membership.get(number, ()))].append(number)
        atoms += [Atom(group.name, rows, np.array(found), ties) for rows, found in alike.items()]
    return atoms


def _cluster(groups: Groups, found: tuple[Group, ...], atoms: list[Atom]) -> Cluster:
    numbers = {int(n) for atom in atoms for n in atom.channels}
    counted = [row for block in groups.blocks for row in _differences(block, atoms, numbers)]
    equal, offset = zip(*counted, strict=True) if counted else ((), ())
    least = _axis_rows(groups, found, atoms)
    n = len(atoms)
    return Cluster(
        tuple(group.name for group in found),
        tuple(atoms),
        any(groups.blocks[b].moved for atom in atoms for b, _, _ in atom.rows),
        np.array(equal, dtype=int).reshape(-1, n),
        np.array(offset, dtype=int),
        np.array(least, dtype=int).reshape(-1, n),
    )


def _differences(
    block: Blocks, atoms: list[Atom], numbers: set[int]
) -> list[tuple[np.ndarray, int]]:
    """Return, for each row but the first, its counts minus the first row's: by atom, and frozen."""
    if not numbers & set(block.rows.reshape(-1).tolist()):
        return []
    # An atom's channels all occur equally often in a row, so its first one speaks for it.
    heads = np.array([atom.channels[0] for atom in atoms])
    counts = np.stack([(row[None] == heads[:, None]).sum(1) for row in block.rows])
    fixed = (~np.isin(block.rows, list(numbers))).sum(1)
    return [(counts[r] - counts[0], int(fixed[r] - fixed[0])) for r in range(1, len(counts))]


def _axis_rows(groups: Groups, found: tuple[Group, ...], atoms: list[Atom]) -> list[np.ndarray]:
    """Return which atoms keep each axis (or each conv group's part of it) from being emptied."""
    owner = {int(n): i for i, atom in enumerate(atoms) for n in atom.channels}
    rows: dict[bytes, np.ndarray] = {}
    for axis in {axis for group in found for axis in group.axes}:
        for part in np.atleast_2d(groups.axes[axis]):
            counts = np.zeros(len(atoms), dtype=int)
            inside = [owner[n] for n in part.tolist() if n in owner]
            if len(inside) < len(part):
                continue  # channels outside the cluster are on it too
            counts[inside] = 1
            rows[counts.tobytes()] = counts
    for block in groups.blocks:
        for row in block.rows:
            inside = [owner[n] for n in row.tolist() if n in owner]
            if block.moved and len(inside) == len(row):
                counts = np.bincount(inside, minlength=len(atoms)).clip(max=1)
                rows[counts.tobytes()] = counts
    return list(rows.values())


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
    found = milp(
        np.concatenate([np.zeros(n), np.ones(n)]),
        integrality=np.concatenate([np.ones(n), np.zeros(n)]),
        bounds=Bounds(np.zeros(2 * n), np.concatenate([sizes, np.full(n, np.inf)])),
        constraints=constraints,
        options={"mip_rel_gap": 0.02, "time_limit": 10},
    )
    if found.x is None:
        raise CouplingError(
            f"no choice of channels satisfies what binds {', '.join(cluster.groups[:5])}: "
            f"{found.message}; exclude these modules"
        )
    return np.asarray(np.round(found.x[:n]), dtype=int)
