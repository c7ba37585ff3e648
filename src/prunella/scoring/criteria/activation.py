"""Activation: a channel that is hardly ever on matters little."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prunella.scoring.criteria._protocol import Member, Need
from prunella.scoring.criteria.magnitude import relative
from prunella.scoring.criteria.reading import Reading


@dataclass(frozen=True)
class Activation:
    """The root mean square of a channel as its consumers get it, each divided by its mean, summed.

    A group of which no consumer was seen is scored by "reading".

    Source:
        Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource Efficient
        Inference", section 2.2, "Activation"; there the mean or the deviation of a feature map.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"activations"})

    def __call__(self, members: Sequence[Member], /) -> Tensor:
        """Return the scores, `[channels]`."""
        sizes = [relative(m.inputs.mean(1).sqrt()) for m in members if m.inputs is not None]
        return torch.stack(sizes).sum(0) if sizes else Reading()(members)
