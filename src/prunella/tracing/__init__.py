"""Model + example inputs -> `Graph`."""

from prunella.tracing.tracing import Inputs, called_with, trace

__all__ = ["Inputs", "called_with", "trace"]
