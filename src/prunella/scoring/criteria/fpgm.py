"""FPGM: a filter near the middle of all filters can be replaced by the others."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunella.scoring.criteria._protocol import Member
from prunella.scoring.criteria.magnitude import matrices, relative


@dataclass(frozen=True)
class Fpgm:
    """The sum of a channel's distances to all other channels of its group.

    Distances on each axis are divided by their mean, then summed over the axes.

    Source:
        He et al. 2019, "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks
        Acceleration", section 3: sum over j of |F_i - F_j|, there for the filters of one layer.
    """

    def __call__(self, members: Sequence[Member], /) -> Tensor:
        """Return the scores, `[channels]`."""
        return torch.stack([relative(_distances(m.weight)) for m in matrices(members)]).sum(0)


def _distances(rows: Tensor) -> Tensor:
    """Return each row's summed distance to all rows."""
    # Not by matrix products, which take the differences of large squares: near rows get any value.
    exact = "donot_use_mm_for_euclid_dist"
    parts = [torch.cdist(part, rows, compute_mode=exact).sum(1) for part in rows.split(1024)]
    return torch.cat(parts)
