"""Magnitude: small weights matter little."""

from dataclasses import dataclass

import torch
from torch import Tensor

from prunella.errors import ConfigError


@dataclass(frozen=True)
class Magnitude:
    """The Lp norm of everything a channel has, on all axes of its group.

    Each axis is divided by its own mean first, so that a wide consumer does not drown a narrow
    producer.

    Attributes:
        p: Order of the norm, 1 or 2.

    Source:
        Li et al. 2017, "Pruning Filters for Efficient ConvNets", section 3.1 (p = 1, the producer
        alone). Fang et al. 2023, "DepGraph", section 3.3 (sums over the whole group).
    """

    p: int = 2

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise ConfigError(f"the order of the norm is 1 or 2, got p={self.p}")

    def __call__(self, slices: list[Tensor]) -> Tensor:
        """Return the scores, `[channels]`."""
        totals = []
        for matrix in slices:
            power = (matrix.square() if self.p == 2 else matrix.abs()).sum(1)
            totals.append(power / power.mean().clamp_min(torch.finfo(power.dtype).tiny))
        return torch.stack(totals).sum(0).pow(1 / self.p)
