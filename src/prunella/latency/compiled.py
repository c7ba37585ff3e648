"""A latency model of compiled torch: that of eager torch, corrected by a few compiled networks.

To compile one network takes from seconds to minutes, so dozens of them are out of the question. But
inductor calls the same kernels for convolutions and products as eager torch does: how time follows
widths is measured there. What compiling changes (fused element-wise operators, fewer calls, another
layout) is told by two numbers, a factor and a constant.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from prunella.costs.timed import Part, Region
from prunella.latency.fitting import predict, solve
from prunella.latency.measured import Sample

NETWORKS = 8
"""Networks that are compiled: two numbers are fitted, and held-out ones judge them."""


def fit_compiled(eager: Sequence[Region], samples: Sequence[Sample]) -> tuple[Region, ...]:
    """Fit the times of compiled networks.

    Args:
        eager: What the time in eager torch is the sum of.
        samples: What was measured of compiled networks.
    """
    known = predict(eager, np.array([sample.lengths for sample in samples]))
    times = np.array([sample.whole for sample in samples])
    constant, factor = solve(np.stack([np.ones_like(known), known], axis=1), times).tolist()
    scaled = tuple(
        replace(region, parts=tuple(replace(part, ms=part.ms * factor) for part in region.parts))
        for region in eager
    )
    return *scaled, Region("calls", "", (Part(constant, (), ()),))
