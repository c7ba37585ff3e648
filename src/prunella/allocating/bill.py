"""What a budget limits, while clusters go from level to level."""

from collections.abc import Mapping, Sequence

import numpy as np

from prunella.costs.ladders import Ladder, LadderCosts
from prunella.costs.memory import Peak
from prunella.costs.predicted import Term, byte_terms, mac_terms, param_terms
from prunella.plan import Groups

_TERMS = {"macs": mac_terms, "params": param_terms, "weight_bytes": byte_terms}


class Bill:
    """Polynomials and their limits; activations bring one for every moment of the forward pass.

    Args:
        groups: The groups of a network.
        ladders: The levels of its clusters.
        limits: What may remain, by the name of the cost.
        peak: The memory of activations, where the budget limits it.
    """

    def __init__(
        self,
        groups: Groups,
        ladders: Sequence[Ladder],
        limits: Mapping[str, int],
        peak: Peak | None,
    ) -> None:
        terms: list[Term] = []
        weights: list[np.ndarray] = []
        bounds: list[int] = []
        for name, limit in limits.items():
            of_cost = peak.terms if name == "activation_bytes" and peak else _TERMS[name](groups)
            rows = peak.at if name == "activation_bytes" and peak else np.ones((1, len(of_cost)))
            samples = groups.graph.samples if name in ("macs", "activation_bytes") else 1
            weights.append(np.asarray(rows, dtype=np.int64))
            bounds += [(limit + 1) * samples - 1] * len(rows)
            terms += of_cost
        self.limits = np.array(bounds, dtype=np.int64)
        self.costs = LadderCosts(terms, _blocks(weights), ladders, groups.channels)
        over = self.costs.totals() > self.limits  # only what the dense model exceeds
        self.costs.keep(over)
        self.limits = self.limits[over]

    def put(self, at: Sequence[int]) -> None:
        """Put every cluster at a level."""
        self.costs.put(at)

    def move(self, cluster: int, level: int) -> None:
        """Put one cluster at another level."""
        self.costs.move(cluster, level)

    def fits(self) -> bool:
        """Say whether the budget is kept."""
        return bool((self.costs.totals() <= self.limits).all())

    def fitting(self, cluster: int) -> np.ndarray:
        """Say at which levels of one cluster the budget is kept: bool, `[levels]`."""
        return np.asarray((self.costs.along(cluster) <= self.limits[:, None]).all(0))


def _blocks(weights: Sequence[np.ndarray]) -> np.ndarray:
    made = np.zeros((sum(len(w) for w in weights), sum(w.shape[1] for w in weights)), np.int64)
    row = column = 0
    for found in weights:
        made[row : row + len(found), column : column + found.shape[1]] = found
        row, column = row + len(found), column + found.shape[1]
    return made
