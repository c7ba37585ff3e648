"""The levels among which an allocation chooses: how many channels of a cluster may be kept."""

import math
from collections.abc import Callable, Mapping

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from prunella.allocating.choosing import Chooser
from prunella.allocating.multiples import Multiples, nearest_multiples, step_of
from prunella.costs.ladders import Ladder
from prunella.coupling.counting import Cluster
from prunella.errors import ConfigError

LEVELS, _COSTLY_LEVELS = 64, 32
"""Steps between keeping all of a cluster and the least of it; every count where there are fewer.

The second where a level is dear to find: rows that are cut apart, or uneven ones.
"""

_SETTLED = 8  # counts between two levels that are tried where rows are cut apart

Damage = Callable[[str, int], float]
"""Predicted loss of the metric when a group (name) keeps so many channels; >= 0, decreasing."""


def ladder(chooser: Chooser, cluster: Cluster, multiples: Multiples) -> Ladder:
    """List the counts between keeping all of a cluster and the least of it, each once.

    Args:
        chooser: Knows what fits.
        cluster: A cluster.
        multiples: What its counts have to be multiples of.
    """
    counts = (_aligned if len(multiples.of) else _every)(chooser, cluster, multiples)
    return Ladder(chooser.best(cluster), counts)


def between(
    chooser: Chooser, cluster: Cluster, found: Ladder, level: int, multiples: Multiples
) -> Ladder:
    """List counts from the level before one down to that one, which is the last.

    Atoms that are bound to one another go down together, in the smallest steps that keep them
    balanced; others one after another, a channel at a time. Only what fits is listed.
    """
    counts = found.counts[max(level - 1, 0) : level + 1]
    if len(counts) > 1:
        way = _way_down(cluster, *counts)
        way = [c for c in way if cluster.binds(c) and multiples.hold(cluster, c)]
        if cluster.moved:
            way = [c for c in _some(way, _SETTLED) if _settles(chooser, cluster, c)]
        counts = np.stack([counts[0], *_some(way, LEVELS), counts[1]])
    return Ladder(found.atoms, counts)


def _settles(chooser: Chooser, cluster: Cluster, counts: np.ndarray) -> bool:
    """Say whether the network leaves counts as they are."""
    settled = chooser.settled(cluster, counts)
    return settled is not None and np.array_equal(settled, counts)


def _some(rows: list[np.ndarray], most: int) -> list[np.ndarray]:
    """Return at most so many, evenly spread."""
    return [rows[i * len(rows) // most] for i in range(most)] if len(rows) > most else rows


def _way_down(cluster: Cluster, most: np.ndarray, least: np.ndarray) -> list[np.ndarray]:
    """List the counts between two levels, in steps that keep balanced what is so at both."""
    bound = cluster.equal != 0
    _, part = connected_components(csr_array(bound.T.astype(int) @ bound), directed=False)
    steps: list[tuple[float, np.ndarray]] = []
    for i in range(part.max() + 1):
        move = np.where(part == i, least - most, 0)
        times = int(np.gcd.reduce(move))
        steps += [(j / times, move // times) for j in range(times)]
    steps.sort(key=lambda step: step[0])  # every part is as far on its way as the others
    return [most + moved for moved in np.cumsum([move for _, move in steps], axis=0)[:-1]]


def _every(chooser: Chooser, cluster: Cluster, _: Multiples) -> np.ndarray:
    most = max(atom.channels.size for atom in cluster.atoms) * len(cluster.atoms)
    found = [cluster.sizes()]
    dear = cluster.moved or len({*found[0].tolist()}) > 1
    steps = min(_COSTLY_LEVELS if dear else LEVELS, most)
    for step in range(steps + 1):
        counts = chooser.nearest(cluster, dict.fromkeys(cluster.groups, step / steps))
        if counts.sum() < found[-1].sum():
            found.append(counts)
    return np.stack(found)


def _aligned(chooser: Chooser, cluster: Cluster, multiples: Multiples) -> np.ndarray:
    sizes = cluster.sizes()
    found = [sizes]
    if len(sizes) == 1:
        step = step_of(multiples)
        below = np.arange((sizes[0] - 1) // step * step, 0, -step)
        wanted = below[
            np.unique(np.linspace(0, len(below) - 1, min(len(below), LEVELS)).astype(int))
        ]
        candidates = iter(wanted[wanted >= cluster.least, None])
    else:
        most = min(_COSTLY_LEVELS, int(sizes.sum()))
        ratios = np.linspace(0, 1, most + 1)
        solved = (nearest_multiples(cluster, sizes * (1 - r), multiples) for r in ratios)
        candidates = (counts for counts in solved if counts is not None)
    for counts in candidates:
        fitting = chooser.settled(cluster, counts) if cluster.moved else counts
        if fitting is None or not cluster.binds(fitting):
            continue
        if multiples.hold(cluster, fitting) and fitting.sum() < found[-1].sum():
            found.append(fitting)
    return np.stack(found)


def kept_by_group(cluster: Cluster, counts: np.ndarray) -> np.ndarray:
    """Return how many channels of every group are kept at every level: `[levels, groups]`."""
    of_group = np.array([[atom.group == name for atom in cluster.atoms] for name in cluster.groups])
    return np.asarray(counts @ of_group.T)


def curve(cluster: Cluster, counts: np.ndarray, damage: Damage) -> np.ndarray:
    """Predict the damage at every level of one cluster.

    Raises:
        ConfigError: It is not finite.
    """

    def of(group: str, kept: int) -> float:
        found = damage(group, kept)
        if not math.isfinite(found):
            raise ConfigError(
                f"the predicted damage of group {group!r} with {kept} channels kept is {found}; "
                "give finite numbers. What must stay whole is said with `exclude`"
            )
        return found

    return np.array(
        [
            sum(of(g, n) for g, n in zip(cluster.groups, row, strict=True))
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
