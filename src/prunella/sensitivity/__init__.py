"""Measure or estimate what each group of channels is worth to the metric."""

from prunella.sensitivity.curves import RATIOS, Sensitivity, removed
from prunella.sensitivity.measuring import Evaluate, Progress, analyze

__all__ = ["RATIOS", "Evaluate", "Progress", "Sensitivity", "analyze", "removed"]
