"""In which order a pruned model has its channels, where rows were cut apart and moved.

A channel shuffle over rows that keep different positions sends a kept channel to another place
than the same channel had among the kept ones of the original. So labels are sent through the
network once more, in the shapes the plan gives, and what every consumer must gather is read off
them: right by construction, with no index arithmetic of its own.
"""

from collections import defaultdict

import numpy as np

from prunella.counting import AtomKey, atoms_of
from prunella.coupling import close, propagate
from prunella.errors import CouplingError
from prunella.labels import Labels, Shape
from prunella.plan import Axis, Groups


def arrange(groups: Groups, mask: np.ndarray) -> dict[Axis, np.ndarray]:
    """Return the kept positions of every axis in the pruned model's order, `[kept]` or by block.

    Args:
        groups: The groups of a network.
        mask: For every channel number, whether it is kept.
    """
    labels, components = _propagate_pruned(groups, mask)
    channel = np.full(components.max(initial=-1) + 1, -1)
    kept_by_atom = {
        atom.key: [int(n) for n in atom.channels if mask[n]] for atom in atoms_of(groups)
    }
    for key, found in _atoms_of(groups, labels, components).items():
        kept = kept_by_atom.get(key, [])
        if len(kept) != len(found):
            raise CouplingError(
                f"the order of the channels of `{key[0]}` cannot be told: the pruned network has "
                f"{len(found)} where the plan keeps {len(kept)}; exclude its modules"
            )
        channel[found] = kept
    return {
        axis: _gather(number, mask, channel[components[labels.axes[axis].numpy()]])
        for axis, number in groups.axes.items()
    }


def settle(groups: Groups, mask: np.ndarray) -> dict[AtomKey, int]:
    """Say how many channels of every atom the network has in the shapes that a mask gives.

    Rows that keep equally many fix the shapes, but not yet what a later cut takes from which row:
    an interleaved dimension of 2k channels cut in two gives ceil(k / 2) of the first row to the
    first half, say. The pruned network itself says.
    """
    labels, components = _propagate_pruned(groups, mask)
    return {key: len(found) for key, found in _atoms_of(groups, labels, components).items()}


def _propagate_pruned(groups: Groups, mask: np.ndarray) -> tuple[Labels, np.ndarray]:
    graph = groups.graph
    before = propagate(graph, {name: value.shape for name, value in graph.values.items()})
    number = _numbers(groups, before)
    kept = np.append(mask, True)[number]  # by label; number -1 is what never changes
    shapes = {
        name: pruned_shape(value.shape, [kept[a.numpy()] for a in before.layers.get(name, ())])
        for name, value in graph.values.items()
    }
    after = propagate(graph, shapes)
    if len(after.rows) != len(before.rows):
        raise CouplingError("a dimension that is cut and moved would keep a single channel")
    return after, close(after)


def _gather(number: np.ndarray, mask: np.ndarray, channels: np.ndarray) -> np.ndarray:
    """Return where an axis has the channels the pruned network wants on it; frozen ones stay."""
    if number.ndim == 2:
        return np.stack([_gather(n, mask, c) for n, c in zip(number, channels, strict=True)])
    waiting: dict[int, list[int]] = defaultdict(list)
    for position in np.flatnonzero(mask[number]).tolist():
        waiting[int(number[position])].append(position)
    frozen = (p for n, found in waiting.items() if n not in set(channels.tolist()) for p in found)
    return np.array([waiting[c].pop(0) if c >= 0 else next(frozen) for c in channels.tolist()])


def _numbers(groups: Groups, labels: Labels) -> np.ndarray:
    """Map every label to its channel number, -1 for what is in no group."""
    components = close(labels)
    of_component = np.full(components.max(initial=-1) + 1, -1)
    for axis, number in groups.axes.items():
        of_component[components[labels.axes[axis].numpy()]] = number
    return of_component[components]


def pruned_shape(shape: Shape, masks: list[np.ndarray]) -> Shape:
    """Return the shape a tensor has when only what `masks` (one a layer) allow is kept."""
    sizes = list(shape)
    for mask in masks:
        dims = [d for d, n in enumerate(mask.shape) if n > 1]
        for d, size in zip(dims, _extents(mask.reshape([mask.shape[d] for d in dims])), strict=True):
            sizes[d] = size
    return tuple(sizes)


def _extents(mask: np.ndarray) -> list[int]:
    """Return the extents of what is kept of an array, ragged along one dimension at the most."""
    spans = [int(mask.any(axis=tuple(set(range(mask.ndim)) - {d})).sum()) for d in range(mask.ndim)]
    if np.prod(spans) == mask.sum():
        return spans
    # Rows that keep equally many are never emptied, so it is the other dimension that is ragged.
    for d in reversed(range(mask.ndim)):
        rest = [n for i, n in enumerate(mask.shape) if i != d]
        counts = np.unique(mask.sum(d))
        if len(counts) == 1 and counts[0] > 0:
            return [*rest[:d], int(counts[0]), *rest[d:]]
    raise CouplingError("rows of channels that must keep equally many do not")


def _atoms_of(
    groups: Groups, labels: Labels, components: np.ndarray
) -> dict[AtomKey, list[int]]:
    """Sort the pruned network's components into the original's atoms, in order of position."""
    by_axes = {frozenset((a, p.shape[1]) for a, p in g.axes.items()): g for g in groups}
    rows: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for b, block in enumerate(groups.blocks):
        for r, row in enumerate(components[labels.rows[block.index].labels.numpy()]):
            for component, times in zip(*np.unique(row, return_counts=True), strict=True):
                rows[int(component)].append((b, r, int(times)))
    places: dict[int, dict[Axis, int]] = {}
    for axis in groups.axes:
        for component in components[labels.axes[axis].numpy()].reshape(-1).tolist():
            counts = places.setdefault(component, {})
            counts[axis] = counts.get(axis, 0) + 1
    atoms: dict[AtomKey, list[int]] = defaultdict(list)
    for component, counts in places.items():
        group = by_axes.get(frozenset(counts.items()))
        if group is not None:
            atoms[group.name, tuple(rows[component])].append(component)
    return atoms
