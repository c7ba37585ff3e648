"""The levels among which an allocation chooses: how many channels of a cluster may be kept."""

from collections.abc import Callable, Mapping

import numpy as np

from prunella.allocating.choosing import Chooser
from prunella.allocating.multiples import aligned, nearest_aligned
from prunella.costs.ladders import Ladder
from prunella.counting import Cluster

LEVELS, _COSTLY_LEVELS = 64, 32
"""Steps between keeping all of a cluster and the least of it; every count where there are fewer.

The second where a level is dear to find: rows that are cut apart, or uneven ones.
"""

Damage = Callable[[str, int], float]
"""Predicted loss of the metric when a group (name) keeps so many channels; >= 0, decreasing."""


def ladder(chooser: Chooser, cluster: Cluster, steps: Mapping[str, int]) -> Ladder:
    """List the counts between keeping all of a cluster and the least of it, each once.

    Args:
        chooser: Knows what fits.
        cluster: A cluster.
        steps: Of which number each group keeps a multiple.
    """
    free = all(steps[name] == 1 for name in cluster.groups)
    most = max(atom.channels.size for atom in cluster.atoms) * len(cluster.atoms)
    counts = _every(chooser, cluster, most) if free else _aligned(chooser, cluster, most, steps)
    return Ladder(chooser.best(cluster), counts)


def _every(chooser: Chooser, cluster: Cluster, most: int) -> np.ndarray:
    found = [cluster.sizes()]
    dear = cluster.moved or len({*found[0].tolist()}) > 1
    steps = min(_COSTLY_LEVELS if dear else LEVELS, most)
    for step in range(steps + 1):
        counts = chooser.nearest(cluster, dict.fromkeys(cluster.groups, step / steps))
        if counts.sum() < found[-1].sum():
            found.append(counts)
    return np.stack(found)


def _aligned(chooser: Chooser, cluster: Cluster, most: int, steps: Mapping[str, int]) -> np.ndarray:
    sizes = cluster.sizes()
    found = [sizes]
    if len(sizes) == 1:
        step = steps[cluster.groups[0]]
        below = np.arange((sizes[0] - 1) // step * step, 0, -step)
        wanted = below[
            np.unique(np.linspace(0, len(below) - 1, min(len(below), LEVELS)).astype(int))
        ]
        candidates = iter(wanted[wanted >= cluster.least, None])
    else:
        most = min(_COSTLY_LEVELS, most)
        solved = (nearest_aligned(cluster, sizes * (1 - i / most), steps) for i in range(most + 1))
        candidates = (counts for counts in solved if counts is not None)
    for counts in candidates:
        fitting = chooser.settled(cluster, counts) if cluster.moved else counts
        if fitting is None or not cluster.binds(fitting) or not aligned(cluster, fitting, steps):
            continue
        if fitting.sum() < found[-1].sum():
            found.append(fitting)
    return np.stack(found)


def kept_by_group(cluster: Cluster, counts: np.ndarray) -> np.ndarray:
    """Return how many channels of every group are kept at every level: `[levels, groups]`."""
    of_group = np.array([[atom.group == name for atom in cluster.atoms] for name in cluster.groups])
    return np.asarray(counts @ of_group.T)


def curve(cluster: Cluster, counts: np.ndarray, damage: Damage) -> np.ndarray:
    """Predict the damage at every level of one cluster."""
    return np.array(
        [
            sum(damage(g, n) for g, n in zip(cluster.groups, row, strict=True))
            for row in kept_by_group(cluster, counts).tolist()
        ],
        dtype=np.float64,
    )


def excess(cluster: Cluster, counts: np.ndarray, most: Mapping[str, float]) -> np.ndarray:
    """Return by how much every level cuts more of groups than it should, in shares of them.

    Args:
        cluster: A cluster.
        counts: Its levels.
        most: The largest ratio of groups; those not named may lose anything.
    """
    kept = kept_by_group(cluster, counts)
    least = np.array([1 - most.get(name, 1.0) for name in cluster.groups])
    return np.asarray((least - kept / kept[0] - 1e-9).clip(min=0).sum(1))
