"""Batch-norm scale: a channel that its norm scales down matters little."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunella.scoring.criteria._protocol import Member
from prunella.scoring.criteria.magnitude import Magnitude, power, relative


@dataclass(frozen=True)
class NormScale:
    """The absolute weights of the norms on a group, each divided by its mean, summed.

    Also the slopes and layer scales that multiply a channel by a number of its own. Meant for
    networks that were trained with an L1 penalty on them. A group without any is scored by its
    magnitude.

    Source:
        Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming",
        section 3.
    """

    def __call__(self, members: Sequence[Member], /) -> Tensor:
        """Return the scores, `[channels]`."""
        scales = [
            relative(power(member.weight, 1))
            for member in members
            if member.role == "scales" and member.weight.shape[1] == 1
        ]
        return torch.stack(scales).sum(0) if scales else Magnitude()(members)
