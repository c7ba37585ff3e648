"""The network whose time is asked: what becomes of it, and of its widths, by a plan."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from prunella.allocating.planning import mask_of
from prunella.costs.widths import Width, lengths
from prunella.latency.sampling import telling
from prunella.plan import Groups, Plan
from prunella.transforming.transforming import smaller

_TELLING = 3  # pruned networks beside the dense one


@dataclass(frozen=True, eq=False)
class Subject:
    """A dense network, and all pruned ones that may be made of it; no plan means the dense one.

    Attributes:
        model: The dense model.
        groups: Its groups.
        widths: Their widths.
        inputs: Arguments and keyword arguments that are timed.
    """

    model: nn.Module
    groups: Groups
    widths: tuple[Width, ...]
    inputs: tuple[tuple[Any, ...], dict[str, Any]]

    def pruned(self, plan: Plan | None) -> nn.Module:
        """Make the network of a plan."""
        return self.model if plan is None else smaller(self.model, plan, self.groups, self.inputs)

    def lengths(self, plan: Plan | None) -> np.ndarray:
        """Return the lengths of the widths in the network of a plan."""
        whole = np.ones(self.groups.channels, dtype=bool)
        return lengths(self.widths, whole if plan is None else mask_of(self.groups, plan.channels))

    def telling(self) -> tuple[Plan | None, ...]:
        """Choose a few plans, the dense network first, that tell its widths apart."""
        return None, *telling(self.groups, self.widths, _TELLING, 0)
