"""Decide how many channels each group loses, and which: groups + scores + budget -> `Plan`."""

from prunella.allocating.allocation import Allocation, allocate, allocate_and_bound, told
from prunella.allocating.levels import Damage

__all__ = ["Allocation", "Damage", "allocate", "allocate_and_bound", "told"]
