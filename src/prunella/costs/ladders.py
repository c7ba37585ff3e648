"""What the next levels of one cluster would save, given the levels of all others."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunella.costs.predicted import Term


@dataclass(frozen=True, eq=False)
class Ladder:
    """The levels of one cluster, from keeping all of it to the least of it.

    `kept[level]` says for each of its `channels` (numbers) whether it is kept.
    """

    channels: np.ndarray
    kept: np.ndarray

    def __len__(self) -> int:
        return len(self.kept)


@dataclass(frozen=True, eq=False)
class _Share:
    """What one cluster has in the terms.

    `lost` has a row for each of the `dims` that the cluster shortens: by how much, at every level.
    A last row, of zeros, stands for all others. `terms` are those it changes; `rows`, like the
    terms' dims, says which row of `lost` belongs to each.
    """

    dims: np.ndarray
    lost: np.ndarray
    terms: np.ndarray
    rows: np.ndarray


class LadderCosts:
    """A cost polynomial with levels as variables, so that one probe is a few small products.

    Args:
        terms: The cost polynomial.
        ladders: The levels of every cluster.
        channels: How many channels there are.
    """

    def __init__(self, terms: Sequence[Term], ladders: Sequence[Ladder], channels: int) -> None:
        index: dict[bytes, int] = {}
        dims: list[np.ndarray] = []
        most = max((len(term.dims) for term in terms), default=0)
        self._factors = np.array([term.factor for term in terms], dtype=np.int64)
        self._dims = np.full((len(terms), most), -1)  # -1: the last of all sizes, which is 1
        for t, term in enumerate(terms):
            for d, dim in enumerate(term.dims):
                found = index.setdefault(dim.tobytes(), len(dims))
                if found == len(dims):
                    dims.append(dim)
                self._dims[t, d] = found
        self._sizes = np.array([*(len(dim) for dim in dims), 1], dtype=np.int64)
        self._shares = self._share_out(dims, ladders, channels)
        self._levels = [len(ladder) for ladder in ladders]
        self.set([0] * len(ladders))

    def _share_out(
        self, dims: Sequence[np.ndarray], ladders: Sequence[Ladder], channels: int
    ) -> list[_Share]:
        owner, place = np.full(channels + 1, -1), np.zeros(channels + 1, dtype=np.int64)
        for c, ladder in enumerate(ladders):
            owner[ladder.channels] = c
            place[ladder.channels] = np.arange(len(ladder.channels))
        touched: list[list[int]] = [[] for _ in ladders]
        lost: list[list[np.ndarray]] = [[] for _ in ladders]
        for d, dim in enumerate(dims):
            owners = owner[dim]
            for c in np.unique(owners[owners >= 0]).tolist():
                touched[c].append(d)
                lost[c].append((~ladders[c].kept[:, place[dim[owners == c]]]).sum(1))
        shares = []
        for ladder, mine, gone in zip(ladders, touched, lost, strict=True):
            row = np.full(len(dims) + 1, len(mine))
            row[mine] = np.arange(len(mine))
            rows = row[self._dims]
            terms = np.flatnonzero((rows < len(mine)).any(1))
            none = np.zeros(len(ladder), dtype=np.int64)
            shares.append(
                _Share(np.array(mine, dtype=np.int64), np.stack([*gone, none]), terms, rows[terms])
            )
        return shares

    def set(self, at: Sequence[int]) -> None:
        """Put every cluster at a level."""
        self._at = [0] * len(at)
        self._left = self._sizes.copy()
        for cluster, level in enumerate(at):
            self.move(cluster, level)

    def move(self, cluster: int, level: int) -> None:
        """Put one cluster at another level."""
        share = self._shares[cluster]
        self._left[share.dims] += share.lost[:-1, self._at[cluster]] - share.lost[:-1, level]
        self._at[cluster] = level

    def total(self) -> int:
        """Return the cost of what is left."""
        return int((self._factors * self._left[self._dims].prod(1)).sum())

    def savings(self, cluster: int) -> np.ndarray:
        """Return what moving one cluster from its level to each further one would save."""
        share, here = self._shares[cluster], self._at[cluster]
        more = share.lost[:, here:] - share.lost[:, here : here + 1]
        left = self._left[self._dims[share.terms]][:, :, None] - more[share.rows]
        total = (self._factors[share.terms, None] * left.prod(1)).sum(0)
        return np.asarray(total[0] - total[1:])

    def neighbours(self, cluster: int) -> list[int]:
        """List the clusters whose savings change with the level of this one."""
        changed = np.zeros(len(self._factors), dtype=bool)
        changed[self._shares[cluster].terms] = True
        return [c for c, share in enumerate(self._shares) if changed[share.terms].any()]
