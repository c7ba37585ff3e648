"""Cost polynomials with one variable for each cluster: at which of its levels it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from prunella.costs.predicted import Term
from prunella.costs.widths import PLAIN, Step

Scope = tuple[int, ...]
"""The clusters that a part of a cost depends on, ascending."""


@dataclass(frozen=True, eq=False)
class Ladder:
    """The levels of one cluster, from the most that it keeps to the least of it.

    `atoms` lists the channels (numbers) of every atom, in the order in which they are kept;
    `counts[level]` says how many of each are.
    """

    atoms: tuple[np.ndarray, ...]
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.counts)


@dataclass(frozen=True, eq=False)
class _Share:
    """What one cluster has in the terms.

    `kept` has a row for each of the `dims` that the cluster shortens: how many of its channels are
    there, at every level. A last row, of zeros, stands for all others. `terms` are those it
    changes; `rows`, like the terms' dims, says which row of `kept` belongs to each.
    """

    dims: np.ndarray
    kept: np.ndarray
    terms: np.ndarray
    rows: np.ndarray


class LadderCosts:
    """Several cost polynomials over the same levels, so that one probe is a few small products.

    Args:
        terms: All terms.
        weights: How often each term is in each polynomial: int, `[costs, terms]`.
        ladders: The levels of every cluster.
        channels: How many channels there are.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        weights: np.ndarray,
        ladders: Sequence[Ladder],
        channels: int,
    ) -> None:
        dims, steps = self._merge(terms, weights)
        self._shares, free = self._share_out(dims, ladders, channels)
        full = np.array([*free, 1], dtype=np.int64)
        self._step(steps, full)
        self._neighbours: dict[int, list[int]] = {}
        self._fixed = full  # of every dimension, what no level changes
        self.put([0] * len(ladders))

    def _merge(
        self, terms: Sequence[Term], weights: np.ndarray
    ) -> tuple[list[np.ndarray], list[Step]]:
        """Tell alike dimensions once, and terms with the same ones.

        Returns:
            The dimensions, and how the length of each counts.
        """
        index: dict[tuple[bytes, Step], int] = {}
        dims: list[np.ndarray] = []
        steps: list[Step] = []
        factors = np.array([term.factor for term in terms], dtype=np.int64)
        merged: dict[tuple[int, ...], int] = {}
        columns = np.zeros(len(terms), dtype=np.int64)
        for t, term in enumerate(terms):
            found = []
            for dim, step in term.stepped():
                channels, times = np.unique(dim, return_counts=True)
                if (
                    step == PLAIN and (times == times[0]).all()
                ):  # every slice of a channel is cut with it
                    factors[t] *= times[0]
                else:
                    channels = np.repeat(channels, times)
                key = channels.astype(np.int64).tobytes(), step
                found.append(index.setdefault(key, len(dims)))
                if found[-1] == len(dims):
                    dims.append(channels)
                    steps.append(step)
            columns[t] = merged.setdefault(tuple(sorted(found)), len(merged))
        most = max((len(found) for found in merged), default=0)
        self._dims = np.full((len(merged), most), -1)  # -1: the last of all sizes, which is 1
        for row, t in merged.items():
            self._dims[t, : len(row)] = row
        self.factors = np.zeros((len(weights), len(merged)), dtype=np.int64)
        np.add.at(self.factors.T, columns, (weights * factors).T)
        return dims, steps

    def _step(self, steps: Sequence[Step], full: np.ndarray) -> None:
        """Let the lengths of dimensions count as their steps say.

        A step is no sum over clusters: only one of them may shorten such a dimension.
        """
        owners = np.bincount(
            np.concatenate([np.empty(0, dtype=int), *(share.dims for share in self._shares)]),
            minlength=len(steps),
        )
        stepped = [step != PLAIN for step in steps]
        assert (owners[stepped] <= 1).all(), "steps are of widths that one cluster decides"
        for share in self._shares:
            for row, d in enumerate(share.dims.tolist()):
                if stepped[d]:
                    share.kept[row] = steps[d](full[d] + share.kept[row])
                    full[d] = 0
        for d in np.flatnonzero(np.array(stepped, dtype=bool) & (owners == 0)).tolist():
            full[d] = steps[d](full[d])

    def _share_out(
        self, dims: Sequence[np.ndarray], ladders: Sequence[Ladder], channels: int
    ) -> tuple[list[_Share], list[int]]:
        """Tell what every cluster has of the dimensions, and how much of each belongs to none."""
        owner, atom, rank = (np.full(channels + 1, -1) for _ in range(3))
        for c, ladder in enumerate(ladders):
            for a, found in enumerate(ladder.atoms):
                owner[found], atom[found], rank[found] = c, a, np.arange(len(found))
        touched: list[list[int]] = [[] for _ in ladders]
        kept: list[list[np.ndarray]] = [[] for _ in ladders]
        free = []
        for d, dim in enumerate(dims):
            owners = owner[dim]
            free.append(int((owners < 0).sum()))
            for c in np.unique(owners[owners >= 0]).tolist():
                mine = dim[owners == c]
                touched[c].append(d)
                kept[c].append(_kept(ladders[c], atom[mine], rank[mine]))
        shares = []
        for ladder, at, counts in zip(ladders, touched, kept, strict=True):
            row = np.full(len(dims) + 1, len(at))
            row[at] = np.arange(len(at))
            rows = row[self._dims]
            terms = np.flatnonzero((rows < len(at)).any(1))
            none = np.zeros(len(ladder), dtype=np.int64)
            shares.append(
                _Share(np.array(at, dtype=np.int64), np.stack([*counts, none]), terms, rows[terms])
            )
        return shares, free

    def keep(self, costs: np.ndarray) -> None:
        """Forget all polynomials but those of a mask, `[costs]`."""
        self.factors = self.factors[costs]

    def put(self, at: Sequence[int]) -> None:
        """Put every cluster at a level."""
        self.at = list(at)
        self._left = self._fixed.copy()
        for share, level in zip(self._shares, at, strict=True):
            self._left[share.dims] += share.kept[:-1, level]

    def move(self, cluster: int, level: int) -> None:
        """Put one cluster at another level."""
        share = self._shares[cluster]
        self._left[share.dims] += share.kept[:-1, level] - share.kept[:-1, self.at[cluster]]
        self.at[cluster] = level

    def totals(self) -> np.ndarray:
        """Return what is left of every cost: `[costs]`."""
        return np.asarray(self.factors @ self._left[self._dims].prod(1))

    def along(self, cluster: int) -> np.ndarray:
        """Return every cost with one cluster at each of its levels: `[costs, levels]`."""
        share = self._shares[cluster]
        more = share.kept - share.kept[:, self.at[cluster], None]
        here = self._left[self._dims[share.terms]]
        left = (here[:, :, None] + more[share.rows]).prod(1) - here.prod(1)[:, None]
        return np.asarray(self.totals()[:, None] + self.factors[:, share.terms] @ left)

    def neighbours(self, cluster: int) -> list[int]:
        """List the clusters whose savings change with the level of this one."""
        if cluster not in self._neighbours:
            changed = np.zeros(len(self._dims), dtype=bool)
            changed[self._shares[cluster].terms] = True
            found = [c for c, share in enumerate(self._shares) if changed[share.terms].any()]
            self._neighbours[cluster] = found
        return self._neighbours[cluster]

    def parts(self) -> tuple[np.ndarray, dict[Scope, list[tuple[int, np.ndarray]]]]:
        """Multiply the terms out into functions of one cluster, of two, and so on.

        Returns:
            What no level changes, by term; and for every scope its parts: a term, and its product
            as an array over the levels of the scope's clusters.
        """
        of_dim: dict[int, list[tuple[Scope, np.ndarray]]] = {
            d: [((), self._fixed[d])] for d in range(len(self._fixed))
        }
        for c, share in enumerate(self._shares):
            for d, kept in zip(share.dims.tolist(), share.kept, strict=False):
                of_dim[d].append(((c,), kept))
        fixed = np.zeros(len(self._dims), dtype=np.int64)
        parts: dict[Scope, list[tuple[int, np.ndarray]]] = {}
        for t, dims in enumerate(self._dims.tolist()):
            sums: dict[Scope, np.ndarray] = {}
            for choice in product(*(of_dim[d if d >= 0 else len(self._fixed) - 1] for d in dims)):
                scope = tuple(sorted({c for found, _ in choice for c in found}))
                made = np.ones((1,) * len(scope), dtype=np.int64)
                for found, kept in choice:
                    made = made * kept.reshape([-1 if c in found else 1 for c in scope])
                if made.any():
                    sums[scope] = sums[scope] + made if scope in sums else made
            fixed[t] = sums.pop((), 0)
            for scope, made in sums.items():
                parts.setdefault(scope, []).append((t, made))
        return fixed, parts

    def scopes(self) -> set[Scope]:
        """List which clusters meet in some term, without multiplying it out."""
        of_dim: list[list[int]] = [[] for _ in self._fixed]
        for c, share in enumerate(self._shares):
            for d in share.dims.tolist():
                of_dim[d].append(c)
        found: set[Scope] = set()
        for dims in {tuple(sorted(set(row) - {-1})) for row in self._dims.tolist()}:
            touched = [of_dim[d] for d in dims if of_dim[d]]
            found |= {tuple(sorted(set(choice))) for choice in product(*touched)}
        return found - {()}


def _kept(ladder: Ladder, atoms: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Count which of some channels, given by atom and rank, are kept at every level."""
    kept = np.zeros(len(ladder), dtype=np.int64)
    for a in np.unique(atoms).tolist():
        times = np.bincount(ranks[atoms == a], minlength=len(ladder.atoms[a]))
        kept += np.concatenate([[0], np.cumsum(times)])[ladder.counts[:, a]]
    return kept
