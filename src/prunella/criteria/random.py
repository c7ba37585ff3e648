"""Random scores: the criterion every other has to beat."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Random:
    """Uniform scores that depend on the seed and the group's shape only."""

    seed: int = 0

    def __call__(self, slices: list[Tensor]) -> Tensor:
        """Return the scores, `[channels]`."""
        generator = torch.Generator().manual_seed(self.seed + sum(m.numel() for m in slices))
        return torch.rand(len(slices[0]), generator=generator)
