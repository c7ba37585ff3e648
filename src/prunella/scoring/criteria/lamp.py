"""LAMP: magnitude, relative to what would be left once the smaller ones are gone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunella.scoring.criteria._protocol import Member
from prunella.scoring.criteria.magnitude import matrices, power


@dataclass(frozen=True)
class Lamp:
    """The squared norm of a channel divided by that of all channels that are at least as large.

    Taken on each axis by itself, then summed. On a single axis the order is that of the magnitude;
    on several, an axis where few channels hold all of the norm decides more.

    Source:
        Lee et al. 2021, "Layer-adaptive Sparsity for the Magnitude-based Pruning", section 2:
        w_i^2 / sum of w_j^2 over |w_j| >= |w_i|, there for single weights of a layer.
    """

    def __call__(self, members: Sequence[Member], /) -> Tensor:
        """Return the scores, `[channels]`."""
        return torch.stack([_share(power(member.weight)) for member in matrices(members)]).sum(0)


def _share(squares: Tensor) -> Tensor:
    """Divide each by the sum of itself and all that are larger."""
    ordered, order = squares.sort()
    left = ordered.flip(0).cumsum(0).flip(0)
    share = torch.empty_like(squares)
    share[order] = ordered / left.clamp_min(torch.finfo(left.dtype).tiny)
    return share
