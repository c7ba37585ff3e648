"""Levels worth having where time is limited: each the widest of those that take as long.

A runtime computes in blocks: 17 channels may take as long as 32, and 33 longer than 48. A width
that is no faster than a wider one has nothing to offer. And where there are more widths than
levels, the levels have to be those at the edges of blocks, not even steps that pass them by.
"""

from collections.abc import Sequence

import numpy as np

from prunella.allocating.bill import Meters
from prunella.allocating.choosing import Chooser
from prunella.allocating.levels import LEVELS
from prunella.allocating.multiples import Multiples, step_of
from prunella.costs.ladders import Ladder, LadderCosts

_EQUAL = 0.005  # of what a cluster can save: widths that take as long but for this


def worthwhile(
    chooser: Chooser, of: Sequence[Multiples], ladders: Sequence[Ladder], meters: Meters
) -> list[Ladder]:
    """Choose the levels of all clusters by time, all other clusters being whole.

    Args:
        chooser: Knows the clusters.
        of: What the counts of every cluster have to be multiples of.
        ladders: Levels by even steps.
        meters: Price the time.
    """
    made = []
    for c, (cluster, asked, found) in enumerate(zip(chooser.clusters, of, ladders, strict=True)):
        every = found
        if len(cluster.atoms) == 1 and not cluster.moved and len(found) > 1:
            step = step_of(asked)
            most, least = int(found.counts[0, 0]), int(found.counts[-1, 0])
            whole = np.arange((most - 1) // step * step, least - 1, -step)
            every = Ladder(found.atoms, np.array([most, *whole])[:, None])
        others = [every if i == c else Ladder(x.atoms, x.counts[:1]) for i, x in enumerate(ladders)]
        made.append(Ladder(every.atoms, every.counts[_chosen(_times(meters, others, c))]))
    return made


def _times(meters: Meters, ladders: Sequence[Ladder], cluster: int) -> np.ndarray:
    terms, weights, _ = meters.rows("latency")
    costs = LadderCosts(terms, weights, ladders, meters.groups.channels)
    return np.asarray(costs.along(cluster)[0], dtype=np.float64)


def _chosen(times: np.ndarray) -> np.ndarray:
    """Choose levels, given the time of each; the first one stays.

    Of as many parts of the ladder as there may be levels, each gives the widest that is as fast as
    any in it. What is no faster than a wider one that was chosen is left out.
    """
    parts = np.array_split(np.arange(1, len(times)), min(LEVELS, len(times) - 1) or 1)
    equal = _EQUAL * (times[0] - times.min()) / max(len(parts), 1)
    chosen = [0]
    for part in parts:
        if len(part):
            widest = int(part[(times[part] <= times[part].min() + equal).argmax()])
            if times[widest] < times[chosen[-1]]:
                chosen.append(widest)
    return np.array(chosen)
