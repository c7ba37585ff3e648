"""Short finetuning of what a method left: the same loop, epochs and augmentation for every one."""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from torch import nn

from benchmarks.accuracy import ours, peer, reference
from benchmarks.accuracy.case import Case, Method, problem
from benchmarks.record import Row
from prunella.finetuning import Recipe, finetune

EPOCHS = {"ResNet-20": 10, "ResNet-56": 5}


@dataclass(frozen=True)
class Training:
    """How long, and whether the dense network teaches.

    Attributes:
        epochs: Passes over the 45,000 training images.
        distilled: Prunella's default recipe; otherwise cross-entropy alone.
        limit: Only so many training images, to try the program; None for all.
    """

    epochs: int
    distilled: bool
    limit: int | None = None

    def __str__(self) -> str:
        """Name it as the tables do."""
        kind = "distilled" if self.distilled else "plain"
        few = f", {self.limit} images" if self.limit else ""
        return f"{kind}, {self.epochs} epochs{few}"


def methods(
    network: str, rows: Iterable[Row], epochs: int | None, limit: int | None
) -> list[Method]:
    """List every way to prune, each with both trainings.

    Args:
        network: The network.
        rows: Results without finetuning: they say which settings of Torch-Pruning are its best.
        epochs: In place of the network's.
        limit: See `Training`.
    """
    trainings = [Training(epochs or EPOCHS[network], kind, limit) for kind in (False, True)]
    ways = [*ours.methods(), *reference.methods(), *_best(network, list(rows))]
    return [
        replace(way, training=training, seeded=True, screened=False, recalibrates=False)
        for way in ways
        for training in trainings
    ]


def _best(network: str, rows: list[Row]) -> list[Method]:
    """Return Torch-Pruning as in its recipe, and its best settings before finetuning.

    The best are those with the highest accuracy on test, with and without recalibration, at the
    same budget, or the tightest that was measured without finetuning.
    """
    ways = {method.setting: method for method in peer.methods()}
    found: dict[str, set[int]] = {peer.RECIPE: {50, 60, 75}}
    mine = [r for r in rows if r["network"] == network and r["tool"] == peer.TOOL]
    mine = [row for row in mine if "accuracy" in row]
    tightest = max((row["removed"] for row in mine), default=0)
    for removed in (50, 60, 75):
        for bn in (False, True):
            by_setting: dict[str, list[float]] = {}
            for row in mine:
                if row["bn"] == bn and row["removed"] == min(removed, tightest):
                    by_setting.setdefault(row["setting"], []).append(row["accuracy"])
            if by_setting:
                best = max(by_setting, key=lambda name: mean(by_setting[name]))
                found.setdefault(best, set()).add(removed)
    return [replace(ways[name], at=tuple(sorted(budgets))) for name, budgets in found.items()]


def trained(case: Case, model: nn.Module, method: Method, removed: int) -> tuple[nn.Module, Row]:
    """Finetune, and tell how it went. What a killed process had finished is not done again."""
    training: Any = method.training
    name = "-".join(
        str(part) for part in (method.tool, method.setting, training, removed, case.seed)
    )
    plain = "".join(c if c.isalnum() else "-" for c in f"{case.network}-{name}")
    task = problem(case.network, case.seed, training.limit)
    settings: dict[str, Any] = {**task.settings, "epochs": training.epochs, "seed": case.seed}
    if not training.distilled:
        settings["distill"] = 0.0
    recipe = Recipe(**settings, precision="bf16")
    result = finetune(
        model,
        task,
        recipe,
        teacher=case.dense if training.distilled else None,
        checkpoint=Path(tempfile.gettempdir()) / "prunella-accuracy" / plain,
    )
    return result.model, {
        "epochs": len(result.history),
        "held out by epoch": [round(100 * epoch.metric, 2) for epoch in result.history],
        "training seconds": round(result.seconds),
    }
