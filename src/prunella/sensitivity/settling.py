"""Evaluate no further than the answer is settled."""

import logging

import numpy as np
from torch import nn

from prunella.errors import ConfigError
from prunella.sensitivity.interval import Interval
from prunella.sensitivity.samplewise import Samplewise

WITHIN = 0.2
"""A loss is settled when it is known to this share of itself,"""

LEAST = 0.02
"""or to this share of the metric's range, times `WITHIN`: smaller ones all mean "nothing"."""

log = logging.getLogger("prunella")


class Settling:
    """Judges a model, after the dense one, on as many samples as it takes.

    Every sample is compared with itself in the dense model, so the mean of the differences is
    sought. It is settled when the distance from the estimate to either end of where it must lie is
    at most `WITHIN` of the estimate, or of `LEAST` where that is more.

    Args:
        samples: The metric, sample by sample.
        confidence: With which each value, by itself, is that near to what all samples give.
    """

    def __init__(self, samples: Samplewise, confidence: float) -> None:
        if not 0 < confidence < 1:
            raise ConfigError(f"a confidence lies between 0 and 1, as 0.95 does, got {confidence=}")
        self._samples = samples
        self._confidence = confidence
        self._dense: np.ndarray | None = None
        self._used = 0
        self._values = 0

    def __call__(self, model: nn.Module) -> float:
        """Compute the metric, of the dense model at first."""
        if self._dense is None:
            self._dense = np.concatenate(list(self._samples.each(model)))
            return float(self._dense.mean())
        low, high = self._samples.bounds
        interval = Interval(len(self._dense), self._confidence)
        at, total, mean = 0, 0.0, 0.0
        for found in self._samples.each(model):
            off = found - self._dense[at : at + len(found)]
            interval.add((off / (high - low) + 1) / 2)
            at, total = at + len(found), total + float(off.sum())
            mean = total / at
            ends = [(2 * end - 1) * (high - low) for end in interval.bounds]
            reach = max(ends[1] - mean, mean - ends[0])
            if reach <= WITHIN * max(abs(mean), LEAST * (high - low)):
                break
        self._used, self._values = self._used + at, self._values + 1
        return min(max(float(self._dense.mean()) + mean, low), high)

    @property
    def begun(self) -> bool:
        """Whether the dense model was judged."""
        return self._dense is not None

    @property
    def share(self) -> float:
        """The share of the samples that were needed so far, the dense model's aside."""
        whole = 0 if self._dense is None else self._values * len(self._dense)
        return self._used / whole if whole else 1.0

    def __str__(self) -> str:
        """Describe what decides about the numbers."""
        return (
            f"to {WITHIN:.0%} or {WITHIN * LEAST:.2%} of the range, with confidence "
            f"{self._confidence}"
        )
