"""Measure or estimate what each group of channels is worth to the metric."""

from prunella.sensitivity.curves import RATIOS, Sensitivity, removed
from prunella.sensitivity.estimating import DIVERGENCE, estimate
from prunella.sensitivity.measuring import Cut, Progress, analyze
from prunella.sensitivity.samplewise import Samplewise, samplewise
from prunella.sensitivity.sharing import Evaluate

__all__ = [
    "DIVERGENCE",
    "RATIOS",
    "Cut",
    "Evaluate",
    "Progress",
    "Samplewise",
    "Sensitivity",
    "analyze",
    "estimate",
    "removed",
    "samplewise",
]
