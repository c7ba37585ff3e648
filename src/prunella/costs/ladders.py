"""What the next levels of one cluster would save, given the levels of all others."""

from collections import defaultdict

import numpy as np

from prunella.costs.predicted import Term


class LadderCosts:
    """Cost polynomials with levels as variables, so that one probe is a few small products.

    Args:
        terms: The cost polynomial.
        levels: For every cluster its masks, from all of it to the least of it.
    """

    def __init__(self, terms: list[Term], levels: list[list[np.ndarray]]) -> None:
        self._terms: list[tuple[int, list[tuple[int, dict[int, np.ndarray]]]]] = []
        self._touched: dict[int, list[int]] = defaultdict(list)
        self._lost = lost = [
            np.stack([np.append(~mask, False) for mask in ladder]) for ladder in levels
        ]
        owner = np.full(len(levels[0][0]) + 1, -1)
        for c, rows in enumerate(lost):
            owner[rows[-1]] = c
        for term in terms:
            dims = []
            for dim in term.dims:
                clusters = [c for c in np.unique(owner[dim]).tolist() if c >= 0]
                dims.append((len(dim), {c: lost[c][:, dim].sum(1) for c in clusters}))
            for c in {c for _, gone in dims for c in gone}:
                self._touched[c].append(len(self._terms))
            self._terms.append((term.factor, dims))

    def savings(self, at: list[int], cluster: int) -> np.ndarray:
        """Return what moving one cluster from its level to each further one would save."""
        here = at[cluster]
        saved = np.zeros(len(self._lost[cluster]) - here - 1)
        for i in self._touched[cluster]:
            factor, dims = self._terms[i]
            product = np.full(len(saved) + 1, float(factor))
            for size, gone in dims:
                product *= (
                    size
                    - sum(int(n[at[c]]) for c, n in gone.items() if c != cluster)
                    - (gone[cluster][here:] if cluster in gone else 0)
                )
            saved += product[0] - product[1:]
        return saved
