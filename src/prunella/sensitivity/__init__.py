"""Measure or estimate what each group of channels is worth to the metric."""

from prunella.sensitivity.curves import RATIOS, Sensitivity, removed
from prunella.sensitivity.measuring import Progress, analyze
from prunella.sensitivity.sharing import Evaluate

__all__ = ["RATIOS", "Evaluate", "Progress", "Sensitivity", "analyze", "removed"]
