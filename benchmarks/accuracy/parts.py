"""The parts of pruning, alone and together: criterion, allocation, repair.

Recalibrating batch norms, the fourth, is measured with every combination.
"""

from collections.abc import Iterator
from functools import partial

import prunella
from benchmarks.accuracy.case import Case, Method, Pruned
from prunella.allocating import Damage
from prunella.calibration import calibration
from prunella.repairing.compensating import compensate
from prunella.repairing.divergence import divergence_from, softened
from prunella.repairing.reconstructing import reconstruct
from prunella.sensitivity.valuing import value

TOOL = "part"
RECONSTRUCTION = "reconstruction"


def methods() -> list[Method]:
    """List criteria alone, and what becomes of two with the other parts.

    Repair without a criterion by reconstruction is magnitude's row.
    """
    alone = [(name, False, False) for name in (*prunella.CRITERIA, RECONSTRUCTION)]
    kinds = ((True, False), (False, True), (True, True))
    together = [(name, *kind) for name in ("magnitude", RECONSTRUCTION) for kind in kinds]
    return [
        Method(
            TOOL,
            ", ".join([name, "measured" if measured else "same share", *["repair"] * repaired]),
            partial(prune, criterion=name, measured=measured, repaired=repaired),
            "images" if data else "",
            seeded=data,
        )
        for name, measured, repaired in [*alone, *together]
        for data in [measured or repaired or name == RECONSTRUCTION or _looks(name)]
    ]


def _looks(name: str) -> bool:
    return bool(getattr(prunella.CRITERIA[name], "needs", ()))


def prune(case: Case, criterion: str, measured: bool, repaired: bool) -> Iterator[Pruned]:
    """Prune with these parts for each budget.

    Args:
        case: What to prune.
        criterion: One of the catalogue's, or by reconstruction from the calibration images.
        measured: Whether a budget is spent where outputs move least; else every group loses the
            same share.
        repaired: Whether kept weights make up for removed ones.
    """
    data = calibration(case.batches())
    groups = prunella.couple(prunella.trace(case.dense, case.example))
    damage: Damage | None = None
    if criterion == RECONSTRUCTION:
        found = reconstruct(case.dense, groups, prunella.score(case.dense, groups), data)
        scores = found.scores
        if measured:
            damage = value(case.dense, groups, found, data).damage
    else:
        scores = prunella.score(case.dense, groups, criterion, data if _looks(criterion) else None)
        if measured:
            damage = prunella.analyze(
                case.dense,
                groups,
                scores,
                divergence_from(case.dense, data, softened),
                metric="divergence from the dense network",
                higher_is_better=False,
            ).damage
    for removed in case.budgets:
        plan = prunella.allocate(groups, scores, prunella.Budget(macs=case.share(removed)), damage)
        healed = compensate(case.dense, plan, data) if repaired else case.dense
        yield removed, prunella.transform(healed, plan, case.example)
