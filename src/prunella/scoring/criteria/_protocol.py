"""What a criterion is, and what it is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from prunella.plan import Axis
from prunella.scoring.roles import Role

Need = Literal["gradients", "activations"]
"""What a criterion takes from calibration data, besides the weights."""


@dataclass(frozen=True, eq=False)
class Member:
    """What the channels of a group have on one axis of one parameter.

    Attributes:
        axis: Which dimension of which parameter.
        role: What the network does there: channels are summed over ("reads"), come out ("makes"),
            are multiplied by one number each ("scales": a norm's weight) or added one ("shifts": a
            bias).
        weight: The values in float32, `[channels, elements]`: row `c` is all that channel `c` has.
        gates: With `needs = {"gradients"}`: the derivative of the loss with respect to a factor on
            the row, for every backward pass, `[passes, channels]`. Else, and where none was seen,
            None.
        inputs: With `needs = {"activations"}`: the mean square of what each element is multiplied
            with, `[channels, elements]`, where channels are read. Else, and where none was seen,
            None.
    """

    axis: Axis
    role: Role
    weight: Tensor
    gates: Tensor | None = None
    inputs: Tensor | None = None

    def __len__(self) -> int:
        """Count the channels."""
        return len(self.weight)


class Criterion(Protocol):
    """Scores the channels of one group, given what they have on every parameter axis of it.

    The result is one float per channel, higher = keep; scores are compared within a group only. Any
    function will do. One that needs more than weights says so in an attribute `needs`, a set of
    "gradients" and "activations".
    """

    def __call__(self, members: Sequence[Member], /) -> Tensor:
        """Return the scores, `[channels]`."""
        ...


def gate_of(members: Sequence[Member]) -> Tensor | None:
    """Return the derivative with respect to one gate on each channel, `[passes, channels]`.

    The gate is on what reads the channel: closing it there is the same as removing it. Where no
    weight reads, it is on everything. None where no gradient was seen.
    """
    reading = [member.gates for member in members if member.role == "reads"]
    gates = [gate for gate in reading or [m.gates for m in members] if gate is not None]
    return torch.stack(gates).sum(0) if gates else None
