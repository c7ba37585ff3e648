"""Prune with Prunella: without data, and with calibration images."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import prunella
from benchmarks.accuracy.case import Case, Method, Pruned
from prunella.calibration import calibration
from prunella.repairing.reconstructing import reconstruct
from prunella.sensitivity.valuing import value

TOOL = "Prunella"
STREAM = "conv1"


def methods() -> list[Method]:
    """List what a user gets without and with data, and with one of the defaults changed."""
    inside = partial(calibrated, exclude=STREAM)
    damaged = partial(calibrated, repair=False)
    return [
        Method(TOOL, "no data", by_default),
        defaults(),
        replace(defaults(), setting="calibration, inside", run=inside),
        replace(defaults(), setting="calibration, not repaired", run=damaged),
    ]


def defaults() -> Method:
    """Return what a user gets with data who sets nothing else."""
    return Method(TOOL, "calibration", calibrated, "images", seeded=True, recalibrates=False)


def by_default(case: Case) -> Iterator[Pruned]:
    """Prune in one call for each budget, without data."""
    for removed in case.budgets:
        yield removed, prunella.prune(case.dense, case.example, macs=case.share(removed)).model


def calibrated(case: Case, exclude: str | None = None, repair: bool = True) -> Iterator[Pruned]:
    """Prune with `calibration` for each budget.

    `prune` would measure the same damage for each budget again: it is measured once and handed in.
    """
    data = calibration(case.batches())
    groups = prunella.couple(prunella.trace(case.dense, case.example))
    found = reconstruct(case.dense, groups, prunella.score(case.dense, groups), data)
    damage = value(case.dense, groups, found, data).damage
    for removed in case.budgets:
        result = prunella.prune(
            case.dense,
            case.example,
            macs=case.share(removed),
            calibration=data,
            damage=damage,
            exclude=exclude or (),
            repair=repair,
        )
        yield removed, result.model
