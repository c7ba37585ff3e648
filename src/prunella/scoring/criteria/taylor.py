"""Taylor: how much the loss changes, to first order, when a channel fades."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prunella.scoring.criteria._protocol import Member, Need, gate_of
from prunella.scoring.criteria.reading import Reading


@dataclass(frozen=True)
class Taylor:
    """The mean over passes of |dL/dg|, where g multiplies the channel for all who read it.

    The gate is what pruning closes: its derivative is the sum over all reading slices of w * dL/dw,
    with signs, before anything is squared or made absolute. Where no weight reads the channel, the
    gate is on all that the group has. A group that no gradient reached is scored by "reading".

    Source:
        Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource Efficient
        Inference", section 2.2: |sum of dC/dz * z| over a feature map, averaged over examples;
        here over passes, and one gate for all consumers.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"gradients"})

    def __call__(self, members: Sequence[Member], /) -> Tensor:
        """Return the scores, `[channels]`."""
        gate = gate_of(members)
        return Reading()(members) if gate is None else gate.abs().mean(0)
