"""Magnitude: small weights matter little."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunella.errors import ConfigError
from prunella.scoring.criteria._protocol import Member


@dataclass(frozen=True)
class Magnitude:
    """The Lp norm of everything a channel has, on all axes of its group.

    Each axis is divided by its own mean first, so that a wide consumer does not drown a narrow
    producer. What is one number a channel (biases, the vectors of norms) counts only where there is
    nothing else: beside a convolution, a bias would weigh as much as all of its filters.

    Attributes:
        p: Order of the norm, 1 or 2.

    Source:
        Li et al. 2017, "Pruning Filters for Efficient ConvNets", section 3.1 (p = 1, the producer
        alone). Fang et al. 2023, "DepGraph", section 3.3 (sums over the whole
        group: I = sum of |w|^2 over every slice).
    """

    p: int = 2

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise ConfigError(f"the order of the norm is 1 or 2, got p={self.p}")

    def __call__(self, members: Sequence[Member], /) -> Tensor:
        """Return the scores, `[channels]`."""
        powers = [power(member.weight, self.p) for member in matrices(members)]
        return torch.stack([relative(each) for each in powers]).sum(0).pow(1 / self.p)


def power(weight: Tensor, p: int = 2) -> Tensor:
    """Return the p-th power of the Lp norm of each row."""
    return (weight.square() if p == 2 else weight.abs()).sum(1)


def relative(values: Tensor) -> Tensor:
    """Divide by the mean; zeros stay zero."""
    return values / values.mean().clamp_min(torch.finfo(values.dtype).tiny)


def matrices(members: Sequence[Member]) -> Sequence[Member]:
    """Return the members with more than one number a channel; all, where there is none."""
    return [member for member in members if member.weight.shape[1] > 1] or members
