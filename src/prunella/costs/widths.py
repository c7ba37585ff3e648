"""The widths of a network: the lengths of its axes that change with what is kept, each once.

Runtimes do not work on single channels. A kernel computes blocks of 8 or 16, and takes a slower way
where a width is no multiple of 4: time is a sum of products of *stepped* widths.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from prunella.coupling.counting import clusters
from prunella.plan import Groups


@dataclass(frozen=True, slots=True, order=True)
class Step:
    """How a width counts: in full blocks, and perhaps only where it is, or is not, a multiple.

    Attributes:
        block: A block begun counts in full; 1 counts channels.
        of: A multiple of what.
        only: "all" widths count, or those that are a "whole" multiple of it, or the "ragged" ones.
        least: Fewer channels than these count as none.

    Example:
        >>> Step(block=16)(np.array([3, 16, 17])).tolist()
        [16, 16, 32]
        >>> Step(of=4, only="ragged")(np.array([3, 16, 17])).tolist()
        [3, 0, 17]
    """

    block: int = 1
    of: int = 1
    only: Literal["all", "whole", "ragged"] = "all"
    least: int = 1

    def __call__(self, width: np.ndarray) -> np.ndarray:
        """Apply to counts of channels."""
        found = -(-width // self.block) * self.block * (width >= self.least)
        if self.only == "all":
            return np.asarray(found)
        return np.where((width % self.of == 0) == (self.only == "whole"), found, 0)


PLAIN = Step()


@dataclass(frozen=True, eq=False)
class Width:
    """An axis that plans shorten.

    Attributes:
        channels: The channel numbers along it, as in `Group.start`, each once where every one has
            equally many positions; -1 is never cut.
        alone: One cluster of groups decides its length. Only then can steps be told by level.
    """

    channels: np.ndarray
    alone: bool


def widths(groups: Groups) -> tuple[Width, ...]:
    """List the widths of a network, always in the same order."""
    owner = np.full(groups.channels + 1, -1)
    for c, cluster in enumerate(clusters(groups)):
        for atom in cluster.atoms:
            owner[atom.channels] = c
    rows = [number[0] if number.ndim == 2 else number for number in groups.axes.values()]
    found: dict[bytes, Width] = {}
    for row in (*rows, *(dim for term in groups.terms for dim in term.dims)):
        channels, times = np.unique(row, return_counts=True)
        if not (times == times[0]).all():
            channels = np.repeat(channels, times)
        owners = np.unique(owner[channels])
        if (owners >= 0).any():
            channels = channels.astype(np.int64)
            found.setdefault(channels.tobytes(), Width(channels, (owners >= 0).sum() == 1))
    return tuple(found.values())


def lengths(found: tuple[Width, ...], mask: np.ndarray) -> np.ndarray:
    """Return how many channels of every width a mask keeps: int, `[widths]`."""
    mask = np.append(mask, True)
    return np.array([int(mask[width.channels].sum()) for width in found], dtype=np.int64)
