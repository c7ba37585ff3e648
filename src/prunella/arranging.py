"""In which order a pruned model has its channels, where rows were cut apart and moved.

A channel shuffle over rows that keep different positions sends a kept channel to another place
than the same channel had among the kept ones of the original. So labels are sent through the
network once more, in the shapes the plan gives, and what every consumer must gather is read off
them: right by construction, with no index arithmetic of its own.
"""

from collections import defaultdict

import numpy as np

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
    graph = groups.graph
    before = propagate(graph, {name: value.shape for name, value in graph.values.items()})
    number = _numbers(groups, before)
    kept = np.append(mask, True)[number]  # by label; number -1 is what never changes
    shapes = {
        name: pruned_shape(value.shape, [kept[a.numpy()] for a in before.layers.get(name, ())])
        for name, value in graph.values.items()
    }
    after = propagate(graph, shapes)
    components = close(after)
    return _match(groups, mask, {a: components[n.numpy()] for a, n in after.axes.items()})


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
    for d in reversed(range(mask.ndim)):
        counts = np.unique(mask.sum(d))
        counts = counts[counts > 0]
        rest = _extents(mask.any(axis=d)) if mask.ndim > 1 else []
        if len(counts) == 1 and np.prod(rest) * counts[0] == mask.sum():
            return [*rest[:d], int(counts[0]), *rest[d:]]
    raise CouplingError("rows of channels that must keep equally many do not")


def _match(
    groups: Groups, mask: np.ndarray, found: dict[Axis, np.ndarray]
) -> dict[Axis, np.ndarray]:
    """Match the pruned network's components with channel numbers, axis by axis.

    The axes come in the order in which the network uses them. One whose components are new keeps
    its channels in the original order; from then on they are known, and later axes follow.
    """
    known: dict[int, int] = {}
    result: dict[Axis, np.ndarray] = {}
    for axis, number in groups.axes.items():
        rows = [
            _gather(known, number_row, mask, component_row, axis)
            for number_row, component_row in zip(
                np.atleast_2d(number), np.atleast_2d(found[axis]), strict=True
            )
        ]
        result[axis] = np.stack(rows) if number.ndim == 2 else rows[0]
    return result


def _gather(
    known: dict[int, int], number: np.ndarray, mask: np.ndarray, components: np.ndarray, axis: Axis
) -> np.ndarray:
    waiting: dict[int, list[int]] = defaultdict(list)  # channel number -> its positions, in order
    for position in np.flatnonzero(mask[number]).tolist():
        waiting[int(number[position])].append(position)
    if sum(map(len, waiting.values())) != len(components):
        raise CouplingError(f"`{axis.tensor}` keeps another number of channels than its neighbours")
    taken = {known[c] for c in components.tolist() if c in known}
    new = iter([n for n in waiting if n not in taken])
    gathered = []
    for component in components.tolist():
        if component not in known:
            known[component] = next(new, -1)
        positions = waiting.get(known[component])
        if not positions:
            raise CouplingError(
                f"the order of the channels of `{axis.tensor}` cannot be told; exclude its module"
            )
        gathered.append(positions.pop(0))
    return np.array(gathered)
