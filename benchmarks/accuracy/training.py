"""Short finetuning of what a method left: the same loop, epochs and augmentation for every one."""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from torch import nn

import prunella
from benchmarks.accuracy import ours, peer, reference
from benchmarks.accuracy.case import Case, Method, Pruned, problem
from benchmarks.accuracy.remembering import Remembering
from benchmarks.record import Row
from prunella.finetuning import Recipe, finetune
from prunella.tasks.cifar10 import HeldOut

EPOCHS = {"ResNet-20": 10, "ResNet-56": 5}
LONG = {"ResNet-56": 25}
ROUNDS = {"ResNet-20": 12, "ResNet-56": 6}


@dataclass(frozen=True)
class Training:
    """How to finetune.

    Attributes:
        epochs: Passes over the 45,000 training images.
        changed: Settings of the recipe that are not Prunella's or the task's default.
        limit: Only so many training images, to try the program; None for all.
        before: How many of these epochs each round before the last has; every round leaves the same
            share of the MACs that it finds. Empty: prune once.
        everything: On all 50,000 training images, as in the literature. What is called "held out by
            epoch" in a row is then half of the test images; nothing is chosen by it.
    """

    epochs: int
    changed: tuple[tuple[str, float], ...] = ()
    limit: int | None = None
    before: tuple[int, ...] = ()
    everything: bool = False

    @property
    def last(self) -> int:
        """Epochs of the last round."""
        return self.epochs - sum(self.before)

    def __str__(self) -> str:
        """Name it as the tables do."""
        changes = [f"{name} {value:g}" for name, value in self.changed]
        kind = "plain" if self.changed == PLAIN else ", ".join(["distilled", *changes])
        rounds = f" in rounds of {', '.join(map(str, self.before))} and {self.last}"
        few = f", {self.limit} images" if self.limit else ""
        every = ", all training images" if self.everything else ""
        return f"{kind}, {self.epochs} epochs{rounds if self.before else ''}{every}{few}"


PLAIN = (("distill", 0.0),)


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
    count = epochs or EPOCHS[network]
    trainings = [Training(count, kind, limit) for kind in (PLAIN, ())]
    ways = [*ours.methods(), *reference.methods(), *_best(network, list(rows))]
    found = [replace(way, training=training) for way in ways for training in trainings]
    return [replace(way, seeded=True, screened=False, recalibrates=False) for way in found]


def recipes(network: str, epochs: int | None, limit: int | None) -> list[Method]:
    """List what finetuning could be made of, for Prunella's pruning with data, at the defaults.

    Args:
        network: The network.
        epochs: In place of the network's.
        limit: See `Training`.
    """
    way, count = ours.defaults(), epochs or EPOCHS[network] // 2
    found = [replace(way, training=Training(count, changed, limit)) for changed in CHANGES]
    return [replace(way, seeded=True, recalibrates=False) for way in found]


def rounds(network: str, epochs: int | None, limit: int | None) -> list[Method]:
    """List one round, three equal ones, and three of which the last has most of the epochs.

    Args:
        network: The network.
        epochs: In place of `ROUNDS`, all rounds together.
        limit: See `Training`.
    """
    way, count = ours.defaults(), epochs or ROUNDS[network]
    trainings = [Training(count, (), limit, (part,) * 2) for part in (count // 3, count // 6)]
    found = [replace(way, training=Training(count, (), limit))]
    found += [replace(way, training=each, run=partial(_again, way, each)) for each in trainings]
    return [replace(way, seeded=True, recalibrates=False) for way in found]


def long(network: str, epochs: int | None, limit: int | None) -> list[Method]:
    """List the long training, for Prunella's pruning with data, at the defaults.

    Args:
        network: The network; only the larger one is worth the hours.
        epochs: In place of `LONG`.
        limit: See `Training`.
    """
    if network not in LONG:
        return []
    training = Training(epochs or LONG[network], (), limit, everything=True)
    way = ours.defaults()
    return [replace(way, training=training, seeded=True, recalibrates=False)]


CHANGES: tuple[tuple[tuple[str, float], ...], ...] = (
    (),
    PLAIN,
    (("distill", 0.5),),
    (("distill", 1.0),),
    (("temperature", 2.0),),
    (("temperature", 8.0),),
    (("feature_distill", 1.0),),
    (("ema", 0.999),),
    (("lr", 0.05),),
    (("lr", 0.007),),
    (("weight_decay", 5e-4),),
)


def _again(way: Method, training: Training, case: Case) -> Iterator[Pruned]:
    """Prune in steps, with a training after each but the last."""
    count = len(training.before) + 1
    for removed in case.budgets:
        model = case.dense
        for number in range(1, count + 1):
            goal = case.limit(removed) * case.share(removed) ** (number / count - 1)
            left = goal / prunella.count_macs(model, case.example)
            [(_, model)] = way.run(replace(case, dense=model, budgets=(100 - 100 * left,)))
            if number < count:
                done = training.before[:number]
                so_far = replace(training, epochs=sum(done), before=done[:-1])
                model, _ = trained(case, model, replace(way, training=so_far), removed)
        yield removed, model


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
    """Finetune, and tell how it went. What a killed process had finished is not done again.

    Of a method in rounds it is the last round that is done here.
    """
    training: Any = method.training
    name = "-".join(
        str(part) for part in (method.tool, method.setting, training, removed, case.seed)
    )
    plain = "".join(c if c.isalnum() else "-" for c in f"{case.network}-{name}")
    held_out: HeldOut = "test" if training.everything else "train"
    task = problem(case.network, case.seed, training.limit, held_out)
    settings = {
        **task.settings,
        "epochs": training.last,
        "seed": case.seed,
        **dict(training.changed),
    }
    recipe = Recipe(**settings, precision="bf16")
    teacher: nn.Module | None = None
    if recipe.taught:
        teacher = case.dense if recipe.feature_distill else Remembering(case.dense)
    result = finetune(
        model,
        task,
        recipe,
        teacher=teacher,
        checkpoint=Path(tempfile.gettempdir()) / "prunella-accuracy" / plain,
    )
    return result.model, {
        "epochs": len(result.history),
        "held out by epoch": [round(100 * epoch.metric, 2) for epoch in result.history],
        "training seconds": round(result.seconds),
    }
