"""Rows of numbers of different lengths, handled as arrays: networks have a million of them."""

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of different lengths: row `i` is the `sizes[i]` values from `starts[i]` on."""

    values: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def row(self, i: int) -> np.ndarray:
        """Return one row."""
        start = self.starts[i]
        return np.asarray(self.values[start : start + self.sizes[i]])

    def take(self, rows: np.ndarray) -> "Ragged":
        """Return some of the rows, one after another in memory."""
        sizes = self.sizes[rows]
        places = ranges(self.starts[rows], sizes)
        return Ragged(self.values[places], np.cumsum(sizes) - sizes, sizes)

    def alike(self, keys: np.ndarray) -> list[np.ndarray]:
        """Sort the rows: the indices of those with the same values and the same key, ascending."""
        if not len(self):
            return []
        heads = self._heads(keys)
        found: dict[Hashable, list[np.ndarray]] = defaultdict(list)
        for head, end in zip(heads.tolist(), [*heads[1:].tolist(), len(self)], strict=True):
            key = keys[head].item(), self.row(head).tobytes()
            found[key].append(np.arange(head, end))
        return [np.concatenate(runs) for runs in found.values()]

    def _heads(self, keys: np.ndarray) -> np.ndarray:
        """Return where a row differs from the one before: few do, so the rest need no look-up."""
        differs = np.ones(len(self), dtype=bool)
        differs[1:] = (self.sizes[1:] != self.sizes[:-1]) | (keys[1:] != keys[:-1])
        like = np.flatnonzero(~differs & (self.sizes > 0))
        if len(like):
            sizes = self.sizes[like]
            mine = self.values[ranges(self.starts[like], sizes)]
            others = self.values[ranges(self.starts[like - 1], sizes)]
            differs[like] = np.logical_or.reduceat(mine != others, np.cumsum(sizes) - sizes)
        return np.flatnonzero(differs)


def sorted_by(owner: np.ndarray, values: np.ndarray, count: int) -> Ragged:
    """Give every owner below `count` the row of its values, in the order in which they come."""
    sizes = np.bincount(owner, minlength=count)
    return Ragged(values[np.argsort(owner, kind="stable")], np.cumsum(sizes) - sizes, sizes)


def ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Join the ranges that begin at `starts`: ([5, 0], [2, 3]) -> [5, 6, 0, 1, 2]."""
    before = np.cumsum(sizes) - sizes
    return np.asarray(np.repeat(starts - before, sizes) + np.arange(sizes.sum()))
