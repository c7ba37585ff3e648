"""In which order a pruned model has its channels, where rows were cut apart and moved.

A channel shuffle over rows that keep different positions sends a kept channel to another place
than the same channel had among the kept ones of the original. So labels are sent through the
network once more, in the shapes the plan gives, and what every consumer must gather is read off
them: right by construction, with no index arithmetic of its own.
"""

from collections import defaultdict
from dataclasses import replace

import numpy as np

from prunella.counting import AtomKey, atoms_of, clusters
from prunella.coupling import close, propagate
from prunella.errors import CouplingError
from prunella.labels import Labels
from prunella.plan import Axis, Groups
from prunella.resizing import Flow, flow_of, resized


def arrange(groups: Groups, mask: np.ndarray) -> dict[Axis, np.ndarray]:
    """Return the kept positions of every axis in the pruned model's order, `[kept]` or by block.

    Args:
        groups: The groups of a network.
        mask: For every channel number, whether it is kept.
    """
    moving = _moving(groups)
    now = mask | ~moving  # the others keep their order: cut them afterwards
    labels, components = _propagate_pruned(flow_of(groups), now)
    channel = np.full(components.max(initial=-1) + 1, -1)
    kept_by_atom: dict[AtomKey, list[int]] = defaultdict(list)
    for atom in atoms_of(groups):  # several have one key where only a tie tells them apart
        kept_by_atom[atom.key] += [int(n) for n in atom.channels if now[n]]
    for key, found in _atoms_of(groups, labels, components).items():
        kept = sorted(kept_by_atom.get(key, []))
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
            for row in (_gather(n, now, c),)
        ]
        positions[axis] = np.stack(rows) if number.ndim == 2 else rows[0]
    return positions


def _moving(groups: Groups) -> np.ndarray:
    """Say for every channel number whether a movement operator cuts its cluster apart."""
    moving = np.zeros(groups.channels, dtype=bool)
    for cluster in clusters(groups):
        if cluster.moved:
            for atom in cluster.atoms:
                moving[atom.channels] = True
    return moving


def settle(flow: Flow, mask: np.ndarray) -> dict[AtomKey, int]:
    """Say how many channels of every atom the network has in the shapes that a mask gives.

    Rows that keep equally many fix the shapes, but not yet what a later cut takes from which row:
    an interleaved dimension of 2k channels cut in two gives ceil(k / 2) of the first row to the
    first half, say. The pruned network itself says.
    """
    labels, components = _propagate_pruned(flow, mask)
    return {key: len(found) for key, found in _atoms_of(flow.groups, labels, components).items()}


def _propagate_pruned(flow: Flow, mask: np.ndarray) -> tuple[Labels, np.ndarray]:
    small = resized(flow, mask)
    labels = propagate(replace(flow.groups.graph, nodes=small.nodes), small.shapes)
    if len(labels.rows) != flow.constraints:
        raise CouplingError("a dimension that is cut and moved would keep a single channel")
    return labels, close(labels)


def _gather(number: np.ndarray, mask: np.ndarray, channels: np.ndarray) -> np.ndarray:
    """Return where an axis has the channels the pruned network wants on it; frozen ones stay."""
    waiting: dict[int, list[int]] = defaultdict(list)
    for position in np.flatnonzero(mask[number]).tolist():
        waiting[int(number[position])].append(position)
    frozen = (p for n, found in waiting.items() if n not in set(channels.tolist()) for p in found)
    return np.array([waiting[c].pop(0) if c >= 0 else next(frozen) for c in channels.tolist()])


def _atoms_of(groups: Groups, labels: Labels, components: np.ndarray) -> dict[AtomKey, list[int]]:
    """Sort the pruned network's components into the original's atoms, in order of position."""
    order = {axis: i for i, axis in enumerate(groups.axes)}
    by_axes = {
        np.repeat(
            *np.array(sorted((order[a], p.shape[1]) for a, p in g.axes.items())).T
        ).tobytes(): g
        for g in groups
    }
    rows: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for b, block in enumerate(groups.blocks):
        if block.tie:
            continue
        for r, row in enumerate(components[labels.rows[block.index].labels.numpy()]):
            for component, times in zip(*np.unique(row, return_counts=True), strict=True):
                rows[int(component)].append((b, r, int(times)))
    owners = [components[labels.axes[axis].reshape(-1).numpy()] for axis in groups.axes]
    owner = np.concatenate(owners)
    axis_of = np.repeat(np.arange(len(owners)), [len(o) for o in owners])
    by_owner = np.argsort(owner, kind="stable")
    found, starts = np.unique(owner[by_owner], return_index=True)
    first = by_owner[starts]  # where each component comes first
    signatures = np.split(axis_of[by_owner], starts[1:])
    atoms: dict[AtomKey, list[int]] = defaultdict(list)
    for i in np.argsort(first):
        group = by_axes.get(signatures[i].tobytes())
        if group is not None:
            component = int(found[i])
            atoms[group.name, tuple(rows[component])].append(component)
    return atoms
