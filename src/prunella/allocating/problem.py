"""The problem that an allocation under a budget is: a level for every cluster."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from prunella.allocating.bill import Bill
from prunella.costs.ladders import Scope

State = tuple[int, ...]
"""The level of every cluster."""

_TIE = 1e-6


@dataclass(frozen=True, eq=False)
class Problem:
    """Levels with the least damage in all that fit a bill.

    Attributes:
        curves: Damage at every level, by cluster.
        shares: Share of the channels that is cut at every level, by cluster.
        bill: What the budget limits.
    """

    curves: Sequence[np.ndarray]
    shares: Sequence[np.ndarray]
    bill: Bill

    @cached_property
    def losses(self) -> list[np.ndarray]:
        """Return the curves, tilted by a millionth: of what is free, as little as need be."""
        whole = sum(float(np.abs(curve).max()) for curve in self.curves) or 1.0
        tilt = _TIE * whole / len(self.curves)
        return [curve + tilt * share for curve, share in zip(self.curves, self.shares, strict=True)]

    @cached_property
    def sizes(self) -> list[int]:
        """Return how many levels every cluster has."""
        return [len(curve) for curve in self.curves]

    @cached_property
    def scale(self) -> np.ndarray:
        """Return the limits as floats: `[costs]`."""
        return self.bill.limits.clip(min=1).astype(np.float64)

    @cached_property
    def parts(self) -> tuple[np.ndarray, dict[Scope, tuple[list[int], np.ndarray]]]:
        """Return the terms multiplied out: what is fixed, and by scope which terms, as tables."""
        fixed, parts = self.bill.costs.parts()
        stacked = {
            scope: ([t for t, _ in found], np.stack([made for _, made in found]))
            for scope, found in parts.items()
        }
        return fixed, stacked

    def loss(self, state: State) -> float:
        """Return the damage of a state, tilt included."""
        return float(sum(loss[i] for loss, i in zip(self.losses, state, strict=True)))

    def over(self, state: State) -> np.ndarray:
        """Return by which share of its limit every cost of a state exceeds it: `[costs]`."""
        self.bill.put(state)
        return np.asarray((self.bill.costs.totals() - self.bill.limits) / self.scale)

    def fits(self, state: State) -> bool:
        """Say whether a state keeps the budget."""
        self.bill.put(state)
        return self.bill.fits()

    def costs(self, weights: np.ndarray) -> tuple[float, dict[Scope, np.ndarray]]:
        """Write a weighted sum of the costs, over their limits, as functions of a few levels each.

        Args:
            weights: Of every cost.

        Returns:
            What no level changes, and a table for every scope.
        """
        fixed, parts = self.parts
        per_term = (weights / self.scale) @ self.bill.costs.factors
        tables = {
            scope: np.tensordot(per_term[terms], made, 1) for scope, (terms, made) in parts.items()
        }
        return float(per_term @ fixed - weights.sum()), tables

    def energy(self, prices: np.ndarray) -> tuple[float, dict[Scope, np.ndarray]]:
        """Write damage plus priced excess over the limits in the same form."""
        fixed, tables = self.costs(prices)
        for c, loss in enumerate(self.losses):
            tables[c,] = tables[c,] + loss if (c,) in tables else loss
        return fixed, tables
