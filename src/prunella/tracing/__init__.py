"""Model + example inputs -> `Graph`."""

from prunella.tracing.tracing import Inputs, positional, trace

__all__ = ["Inputs", "positional", "trace"]
