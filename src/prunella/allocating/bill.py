"""What a budget limits, while clusters go from level to level."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from prunella.costs.ladders import Ladder, LadderCosts
from prunella.costs.memory import Peak
from prunella.costs.predicted import Term, byte_terms, evaluate, mac_terms, param_terms, predict
from prunella.costs.timed import UNITS, LatencyModel
from prunella.plan import Costs, Groups

_TERMS = {"macs": mac_terms, "params": param_terms, "weight_bytes": byte_terms}


@dataclass(frozen=True, eq=False)
class Meters:
    """What it takes to price costs that a graph alone does not tell.

    Attributes:
        groups: The groups of a network.
        peak: The memory of activations, where a budget limits it.
        latency: The time of the network, where a budget limits it.
    """

    groups: Groups
    peak: Peak | None = None
    latency: LatencyModel | None = None

    @cached_property
    def times(self) -> list[Term]:
        """Write the time as a cost, in `UNITS` of a millisecond."""
        return [] if self.latency is None else self.latency.terms(self.groups)

    def costs(self, mask: np.ndarray) -> Costs:
        """Predict all costs with the channels of a mask."""
        found = predict(self.groups, mask)
        if self.peak is not None:
            peak = self.peak.evaluate(mask) // self.groups.graph.samples
            found = replace(found, activation_bytes=peak)
        if self.latency is not None:
            found = replace(found, latency=evaluate(self.times, mask) / UNITS)
        return found

    def rows(self, name: str) -> tuple[list[Term], np.ndarray, int]:
        """Write a cost as sums of terms, of which each has to keep the limit.

        Returns:
            The terms; how often each is in each sum: `[sums, terms]`; and how many of the sums'
            units one of the cost's is.
        """
        samples = self.groups.graph.samples
        if name == "activation_bytes":
            assert self.peak is not None, "memory is followed where it is limited"
            return list(self.peak.terms), self.peak.at.astype(np.int64), samples
        terms = self.times if name == "latency" else _TERMS[name](self.groups)
        one = np.ones((1, len(terms)), dtype=np.int64)
        return terms, one, UNITS if name == "latency" else samples if name == "macs" else 1


class Bill:
    """Polynomials and their limits; activations bring one for every moment of the forward pass.

    Args:
        meters: What it takes to price the costs.
        ladders: The levels of the network's clusters.
        limits: What may remain, by the name of the cost.
    """

    def __init__(
        self, meters: Meters, ladders: Sequence[Ladder], limits: Mapping[str, float]
    ) -> None:
        terms: list[Term] = []
        weights: list[np.ndarray] = []
        bounds: list[int] = []
        for name, limit in limits.items():
            of_cost, rows, units = meters.rows(name)
            weights.append(rows)
            # A count is rounded down from that of all samples; a time is not.
            bound = limit * units if name == "latency" else (limit + 1) * units - 1
            bounds += [int(bound)] * len(rows)
            terms += of_cost
        self.limits = np.array(bounds, dtype=np.int64)
        self.costs = LadderCosts(terms, _blocks(weights), ladders, meters.groups.channels)
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
