"""The parts of pruning, alone and together: criterion, allocation, and what repairs."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import nn

import prunella
from benchmarks.accuracy.case import BATCH, Case, Method, Pruned

TOOL = "part"
Allocation = Literal["same share", "measured"]


def methods() -> list[Method]:
    """List each criterion with the same share everywhere, and with measured curves."""
    return [
        Method(
            TOOL,
            f"{criterion}, {allocation}",
            partial(prune, criterion=criterion, allocation=allocation),
            "images" if allocation == "measured" else "",
            seeded=allocation == "measured",
        )
        for criterion in prunella.CRITERIA
        for allocation in ("same share", "measured")
    ]


def prune(case: Case, criterion: str, allocation: Allocation) -> Iterator[Pruned]:
    """Prune with these parts for each budget."""
    groups = prunella.couple(prunella.trace(case.dense, case.example))
    scores = prunella.score(case.dense, groups, criterion)
    damage = None
    if allocation == "measured":
        damage = measured(case, groups, scores).damage
    for removed in case.budgets:
        budget = prunella.Budget(macs=case.share(removed))
        plan = prunella.allocate(groups, scores, budget, damage)
        yield removed, prunella.transform(case.dense, plan, case.example)


def measured(case: Case, groups: prunella.Groups, scores: prunella.Scores) -> prunella.Sensitivity:
    """Measure how far class probabilities move with each group alone pruned; no labels."""
    folder = Path(tempfile.gettempdir()) / "prunella-accuracy"
    folder.mkdir(exist_ok=True)
    with torch.inference_mode():
        dense = [_logs(case.dense, batch) for batch in case.batches()]

    def divergence(model: nn.Module) -> float:
        with torch.inference_mode():
            moved = [
                (there.exp() * (there - _logs(model, batch))).sum(1)
                for there, batch in zip(dense, case.batches(), strict=True)
            ]
        return float(torch.cat(moved).double().mean())

    name = f"{case.network}-{scores.criterion}-{len(case.labels)}-{case.seed}"
    return prunella.analyze(
        case.dense,
        groups,
        scores,
        divergence,
        metric="divergence from the dense network's classes",
        higher_is_better=False,
        record=folder / f"{name}.jsonl",
        data=f"{len(case.labels)} images, seed {case.seed}, batches of {BATCH}",
    )


def _logs(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        outputs: torch.Tensor = model(batch)
    return outputs.float().log_softmax(1)
