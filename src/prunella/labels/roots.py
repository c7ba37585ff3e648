"""Which labels are cut together so far, for rules that must know it while labels still flow."""

import numpy as np


class Roots:
    """Union-find over numbers, a whole array at a time."""

    def __init__(self) -> None:
        self._parent = np.empty(0, dtype=np.int64)

    def grow(self, count: int) -> None:
        """Make room for the numbers below `count`, each alone at first, and for many more."""
        known = len(self._parent)
        if count > known:
            more = np.arange(known, max(2 * known, count))
            self._parent = np.concatenate([self._parent, more])

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        """Put the numbers of `a` together with those of `b`, position by position."""
        while True:
            a, b = self.of(a), self.of(b)
            apart = a != b
            if not apart.any():
                return
            a, b = a[apart], b[apart]
            # Several may claim one parent at once: the least one gets it, the others come again.
            np.minimum.at(self._parent, np.maximum(a, b), np.minimum(a, b))

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """Return for every number the one that stands for all it was put together with."""
        found: np.ndarray = self._parent[numbers]
        while True:
            above = self._parent[found]
            if np.array_equal(above, found):
                break
            found = above
        self._parent[numbers] = found
        return found
