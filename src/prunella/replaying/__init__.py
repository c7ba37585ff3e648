"""Run a captured graph as if some channels were not there."""

from prunella.replaying.replaying import (
    Step,
    Values,
    bind,
    fits,
    keeping,
    last_uses,
    put_back,
    replay,
    run_node,
    take_kept,
)

__all__ = [
    "Step",
    "Values",
    "bind",
    "fits",
    "keeping",
    "last_uses",
    "put_back",
    "replay",
    "run_node",
    "take_kept",
]
