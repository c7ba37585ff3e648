"""Random scores: the criterion every other has to beat."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunella.scoring.criteria._protocol import Member


@dataclass(frozen=True)
class Random:
    """Uniform scores that depend on the seed and the group's shape only."""

    seed: int = 0

    def __call__(self, members: Sequence[Member], /) -> Tensor:
        """Return the scores, `[channels]`."""
        size = sum(member.weight.numel() for member in members)
        generator = torch.Generator().manual_seed(self.seed + size)
        return torch.rand(len(members[0]), generator=generator)
