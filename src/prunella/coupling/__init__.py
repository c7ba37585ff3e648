"""`Graph` -> `Groups`: which channels of which tensors can only go together."""

from prunella.coupling.coupling import NORMS, Exclude, close, collect, couple, listed, propagate

__all__ = ["NORMS", "Exclude", "close", "collect", "couple", "listed", "propagate"]
