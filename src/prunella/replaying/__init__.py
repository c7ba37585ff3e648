"""Run a captured graph: as it is, in parts, or as if some channels were not there."""

from prunella.replaying.course import Course, Lane
from prunella.replaying.nodes import Step, Values, bind, fits, kind_of, run_node
from prunella.replaying.replaying import keeping, put_back, replay, take_kept

__all__ = [
    "Course",
    "Lane",
    "Step",
    "Values",
    "bind",
    "fits",
    "keeping",
    "kind_of",
    "put_back",
    "replay",
    "run_node",
    "take_kept",
]
