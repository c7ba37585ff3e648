"""In which order a pruned model has its channels, where rows were cut apart and moved.

A channel shuffle over rows that keep different positions sends a kept channel to another place
than the same channel had among the kept ones of the original. So labels are sent through the
network once more, in the shapes the plan gives, and what every consumer must gather is read off
them: right by construction, with no index arithmetic of its own.
"""

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from prunella.coupling.counting import AtomKey, Cluster, clusters, membership
from prunella.coupling.coupling import close, collect, propagate
from prunella.coupling.resizing import Flow, flow_of, resized
from prunella.errors import CouplingError
from prunella.labels import Labels
from prunella.plan import Axis, Groups


@dataclass(frozen=True, eq=False)
class Layout:
    """The groups of a network, with what is needed to cut some of their channels."""

    groups: Groups

    @cached_property
    def clusters(self) -> tuple[Cluster, ...]:
        """Return the groups that may be cut, sorted into clusters."""
        return clusters(self.groups)

    @cached_property
    def flow(self) -> Flow:
        """Return how labels went through the network."""
        return flow_of(self.groups)

    @cached_property
    def moving(self) -> np.ndarray:
        """Say for every channel number whether a movement operator cuts its cluster apart."""
        moving = np.zeros(self.groups.channels, dtype=bool)
        for cluster in self.clusters:
            if cluster.moved:
                for atom in cluster.atoms:
                    moving[atom.channels] = True
        return moving


def arrange(layout: Layout, mask: np.ndarray) -> dict[Axis, np.ndarray]:
    """Return the kept positions of every axis in the pruned model's order, `[kept]` or by block.

    Args:
        layout: The groups of a network.
        mask: For every channel number, whether it is kept.
    """
    groups = layout.groups
    now = mask | ~layout.moving  # the others keep their order: cut them afterwards
    if now.all():
        return {axis: _positions(number, mask) for axis, number in groups.axes.items()}
    labels, components = _propagate_pruned(layout.flow, now)
    channel = np.full(components.max(initial=-1) + 1, -1)
    kept_by_atom: dict[AtomKey, list[np.ndarray]] = defaultdict(list)
    for cluster in layout.clusters:
        for atom in cluster.atoms:  # several have one key where only a tie tells them apart
            kept_by_atom[atom.key].append(atom.channels[now[atom.channels]])
    for key, found in _atoms_of(groups, labels, components).items():
        kept = np.sort(np.concatenate([*kept_by_atom[key], np.empty(0, dtype=np.int64)]))
        if len(kept) != len(found):
            raise CouplingError(
                f"the order of the channels of `{key[0]}` cannot be told: the pruned network has "
                f"{len(found)} where the plan keeps {len(kept)}; exclude its modules"
            )
        channel[found] = kept
    positions = {}
    for axis, number in groups.axes.items():
        wanted = channel[components[labels.axes[axis].numpy()]]
        rows = [
            row[mask[n[row]]]
            for n, c in zip(np.atleast_2d(number), np.atleast_2d(wanted), strict=True)
            for row in (_gather(axis, n, now, c),)
        ]
        positions[axis] = np.stack(rows) if number.ndim == 2 else rows[0]
    return positions


def settle(layout: Layout, mask: np.ndarray) -> dict[AtomKey, int]:
    """Say how many channels of every atom the network has in the shapes that a mask gives.

    Rows that keep equally many fix the shapes, but not yet what a later cut takes from which row:
    an interleaved dimension of 2k channels cut in two gives ceil(k / 2) of the first row to the
    first half, say. The pruned network itself says.
    """
    labels, components = _propagate_pruned(layout.flow, mask)
    return {key: len(found) for key, found in _atoms_of(layout.groups, labels, components).items()}


def _propagate_pruned(flow: Flow, mask: np.ndarray) -> tuple[Labels, np.ndarray]:
    small = resized(flow, mask)
    graph = replace(flow.groups.graph, nodes=small.nodes)
    labels = propagate(graph, small.shapes, flow.groups.heads)
    if len(labels.rows) != flow.constraints:
        raise CouplingError("a dimension that is cut and moved would keep a single channel")
    return labels, close(labels)


def _positions(number: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the kept positions of an axis, by block where it has blocks, in their own order."""
    if number.ndim == 1:
        return np.flatnonzero(mask[number])
    return np.stack([np.flatnonzero(mask[row]) for row in number])


def _gather(axis: Axis, number: np.ndarray, mask: np.ndarray, channels: np.ndarray) -> np.ndarray:
    """Return where an axis has the channels the pruned network wants on it; frozen ones stay."""
    positions = np.flatnonzero(mask[number])
    kept = number[positions]
    kept = np.where(np.isin(kept, channels), kept, -1)
    have, want = np.argsort(kept, kind="stable"), np.argsort(channels, kind="stable")
    if not np.array_equal(kept[have], channels[want]):
        raise CouplingError(
            f"the order of the channels along dimension {axis.dim} of `{axis.tensor}` cannot be "
            "told; exclude its module"
        )
    gathered = np.empty_like(positions)
    gathered[want] = positions[have]
    return gathered


def _atoms_of(groups: Groups, labels: Labels, components: np.ndarray) -> dict[AtomKey, np.ndarray]:
    """Sort the pruned network's components into the original's atoms, in order of position."""
    order = {axis: i for i, axis in enumerate(groups.axes)}
    by_axes = {
        np.repeat(
            *np.array(sorted((order[a], p.shape[1]) for a, p in g.axes.items())).T
        ).tobytes(): g.name
        for g in groups
    }
    rows, decode = membership(
        [
            (b, components[labels.rows[block.index].labels.numpy()])
            for b, block in enumerate(groups.blocks)
            if not block.tie
        ],
        components.max(initial=-1) + 1,
    )
    units = collect([labels.axes[axis] for axis in groups.axes], components)
    rows = rows.take(units.components)
    on_axes = np.full(len(units.components), -1)  # a number for every set of axes
    for i, found in enumerate(units.axis.alike(np.zeros(len(on_axes)))):
        if units.axis.row(found[0]).tobytes() in by_axes:
            on_axes[found] = i
    atoms: dict[AtomKey, np.ndarray] = {}
    for found in rows.alike(on_axes):
        if on_axes[found[0]] >= 0:
            name = by_axes[units.axis.row(found[0]).tobytes()]
            atoms[name, decode(rows.row(found[0]))] = units.components[found]
    return atoms
