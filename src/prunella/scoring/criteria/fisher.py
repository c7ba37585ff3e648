"""Fisher: how much the loss changes, to second order, when a channel goes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prunella.scoring.criteria._protocol import Member, Need, gate_of
from prunella.scoring.criteria.reading import Reading


@dataclass(frozen=True)
class Fisher:
    """The mean over passes of (dL/dg)^2, where g multiplies the channel for all who read it.

    With labels that is the diagonal of the empirical Fisher matrix of the gates. Without, it is the
    diagonal of the Hessian of the outputs' squared distance from the dense model's (Gauss-Newton).
    Where no weight reads the channel, the gate is on all that the group has. A group that no
    gradient reached is scored by "reading".

    Source:
        Liu et al. 2021, "Group Fisher Pruning for Practical Network Compression", section 3.2:
        s = sum over samples of (sum over coupled masks of dL/dm)^2; here over passes, with gates on
        consumers alone. Without labels: LeCun et al. 1989, "Optimal Brain Damage", section 2, with
        its Levenberg-Marquardt approximation, estimated along random directions.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"gradients"})

    def __call__(self, members: Sequence[Member], /) -> Tensor:
        """Return the scores, `[channels]`."""
        gate = gate_of(members)
        return Reading()(members) if gate is None else gate.square().mean(0)
