"""Latency models: the time of a network on a runtime, as a function of its widths, measured."""

from prunella.costs.timed import LatencyModel
from prunella.latency.latency import PLANS, profile

__all__ = ["PLANS", "LatencyModel", "profile"]
