"""All stages in one call."""

from prunella.pruning.pruning import PruneResult, choose_form, prune

__all__ = ["PruneResult", "choose_form", "prune"]
