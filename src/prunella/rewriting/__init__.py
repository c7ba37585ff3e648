"""Write the captured graph down in new sizes, as a module."""

from prunella.rewriting.rewriting import rewritten

__all__ = ["rewritten"]
