"""Prune with Prunella: without data, and with calibration images."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import prunella
from benchmarks.accuracy.case import Case, Method, Pruned

TOOL = "Prunella"


def methods() -> list[Method]:
    """List what a user gets without and with data."""
    return [
        Method(TOOL, "no data", partial(prune, calibrated=False)),
        Method(TOOL, "calibration", partial(prune, calibrated=True), "images", seeded=True),
    ]


def prune(case: Case, calibrated: bool, **options: Any) -> Iterator[Pruned]:
    """Prune in one call for each budget."""
    data: dict[str, Any] = {"calibration": case.batches()} if calibrated else {}
    for removed in case.budgets:
        macs = case.share(removed)
        result = prunella.prune(case.dense, case.example, macs=macs, **data, **options)
        yield removed, result.model
