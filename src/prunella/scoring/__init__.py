"""One number for each channel of each group: `Groups` -> `Scores`."""

from prunella.scoring.scoring import score

__all__ = ["score"]
