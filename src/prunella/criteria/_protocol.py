"""What a criterion is."""

from typing import Protocol

from torch import Tensor


class Criterion(Protocol):
    """Scores the channels of one group.

    `slices` holds one matrix per parameter axis of the group: row `c` is everything channel `c`
    has on that axis, `[channels, elements]`. The result is one float per channel, higher = keep.
    Scores are compared within a group only.
    """

    def __call__(self, slices: list[Tensor]) -> Tensor:
        """Return the scores, `[channels]`."""
        ...
