"""The latency model of a run: measured once, and kept with the run."""

import logging
import time
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from prunella.latency import LatencyModel, profile
from prunella.latency.caching import key_of
from prunella.pipeline.remembering import Made, remembered

if TYPE_CHECKING:  # the context has the model, once it is there
    from prunella.pipeline.context import Context

PROFILE = "profile"

_ADAPTER = TypeAdapter(LatencyModel)

log = logging.getLogger("prunella")


def profiled(context: "Context") -> LatencyModel:
    """Measure the dense model's time by its widths on the run's runtime, or read it.

    Single measurements are in the user's cache (a run that is killed goes on, other runs of the
    network need none); what was fitted to them stays in the work folder, so that all plans of a run
    rest on the same numbers.
    """

    def make() -> Made:
        began = time.perf_counter()
        log.info("profiling %s on %s", context.task.name, context.runtime)
        found = profile(
            context.dense,
            context.example,
            context.groups,
            context.runtime,
            progress=context.progress,
        )
        payload = _ADAPTER.dump_python(found, mode="json")
        return {"model": payload, "seconds": time.perf_counter() - began}, ()

    entry = remembered(context, PROFILE, _inputs(context), make)
    return _ADAPTER.validate_python(entry.payload["model"])


def needs_profile(context: "Context") -> bool:
    """Say whether there is a budget on time, and nothing was measured yet that it is a share of."""
    if context.config.budget.latency is None:
        return False
    return context.space.find(PROFILE, _inputs(context)).entry is None


def _inputs(context: "Context") -> dict[str, Any]:
    return key_of(context.groups, context.runtime)
