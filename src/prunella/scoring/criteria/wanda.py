"""Wanda: weights times what they are multiplied with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prunella.scoring.criteria._protocol import Member, Need
from prunella.scoring.criteria.reading import Reading


@dataclass(frozen=True)
class Wanda:
    """The L2 norm of weight times root mean square of its input, over all weights that read.

    That is how much the consumers' outputs change without the channel, as far as inputs do not
    depend on one another. A group of which no consumer was seen is scored by "reading".

    Source:
        Sun et al. 2024, "A Simple and Effective Pruning Approach for Large Language Models",
        section 3: |W_ij| * |X_j|, there for single weights, compared within a row. Whole columns as
        An et al. 2024, "Fluctuation-based Adaptive Structured Pruning", compare with (Wanda-sp).
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"activations"})

    def __call__(self, members: Sequence[Member], /) -> Tensor:
        """Return the scores, `[channels]`."""
        parts = [
            (member.weight.square() * member.inputs).sum(1)
            for member in members
            if member.inputs is not None
        ]
        return torch.stack(parts).sum(0).sqrt() if parts else Reading()(members)
