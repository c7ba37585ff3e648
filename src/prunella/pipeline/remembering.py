"""Reuse what a run has on record, or make it: one result for all processes of the run."""

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from prunella.pipeline.peers import by_first
from prunella.workspace import Entry

if TYPE_CHECKING:  # the context itself remembers, too
    from prunella.pipeline.context import Context

Made = tuple[Mapping[str, Any], tuple[str, ...]]

log = logging.getLogger("prunella")


def remembered(
    context: "Context",
    name: str,
    inputs: Mapping[str, Any],
    make: Callable[[], Made],
    *,
    together: bool = False,
    quiet: bool = False,
    replacing: Callable[[], None] | None = None,
) -> Entry:
    """Reuse a record, or make it, and say which and why.

    Args:
        context: Of the run.
        name: Of the record.
        inputs: What it is made from.
        make: Makes its values and the files it vouches for.
        together: Whether all processes of a run make it, rather than the first for all.
        quiet: Say nothing; what changes is no surprise.
        replacing: Called by the first process before a record of other inputs is removed.
    """
    peers = context.peers
    entry = by_first(peers, lambda: _look(context, name, inputs, quiet, replacing))
    if entry is not None:
        return entry
    # What is made together tells on its way what failed in one. If it asked here as well, a process
    # that fails alone on an accelerator would wait for those that wait for it.
    made = make() if together else None

    def write() -> Entry:
        payload, files = made or make()
        context.space.write(name, inputs, payload, files)
        return Entry(inputs, payload)

    return by_first(peers, write)


def _look(
    context: "Context",
    name: str,
    inputs: Mapping[str, Any],
    quiet: bool,
    replacing: Callable[[], None] | None,
) -> Entry | None:
    found = context.space.find(name, inputs)
    if found.entry is not None:
        if not quiet:
            log.info("%s", found.reason)
        return found.entry
    if found.reason and not quiet:
        log.warning("%s", found.reason)
    if found.reason and replacing is not None:
        replacing()
    context.space.forget(name)
    return None
