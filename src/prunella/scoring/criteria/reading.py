"""Reading: a channel matters as much as those who read it make of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunella.scoring.criteria._protocol import Member
from prunella.scoring.criteria.magnitude import Magnitude, power


@dataclass(frozen=True)
class Reading:
    """The L2 norm of all weights that a channel is multiplied with by its consumers.

    Without a channel, every consumer's output lacks those weights times the channel. How large the
    channel itself is, weights do not say: behind a norm, the size of the filters that make it means
    nothing. A group that no weight reads (queries and keys) is scored by its magnitude.

    Source:
        Luo et al. 2017, "ThiNet", section 3: what guides the choice in a layer is the input of the
        next. Here without data, so that only the next layer's weights are left of it:
        sqrt(sum of w^2 over every reading slice).
    """

    def __call__(self, members: Sequence[Member], /) -> Tensor:
        """Return the scores, `[channels]`."""
        reads = [power(member.weight) for member in members if member.role == "reads"]
        return torch.stack(reads).sum(0).sqrt() if reads else Magnitude()(members)
