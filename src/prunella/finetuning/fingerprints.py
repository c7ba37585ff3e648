"""Fingerprints of a task's data, as training reads them."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from prunella import tasks
from prunella.finetuning.feeding import Feed, own_chance
from prunella.tasks import Split, Task

FINGERPRINT_BATCHES = 8

DRAWS = 0
"""Seed of what is drawn where data are looked at: the same draws for a fingerprint and for all that
is measured, whatever the seed of the run."""


def data_digest(task: Task, split: Split, batches: int = FINGERPRINT_BATCHES) -> str:
    """Hash the first batches of a split, and how many there are.

    Data that differ from one pass to the next (an augmentation that no seed decides) have no
    fingerprint: "not reproducible", which equals itself, so it never makes a result stale.
    """

    def first(asked: Split) -> Iterable[Any]:
        loader = tasks.open_split(task, asked)
        return Limited(lambda: in_order(loader, asked), batches)

    bounded = dataclasses.replace(task, data=first)
    found = set()
    for _ in range(2):
        with own_chance(DRAWS, torch.device("cpu")):
            found.add(tasks.fingerprint(bounded, split))
    size = tasks.size_of(tasks.open_split(task, split))
    return f"{size} batches, {found.pop()[:16]}" if len(found) == 1 else "not reproducible"


def trained_on(task: Task) -> dict[str, str]:
    """Take the fingerprints of the data that a model is trained and judged on."""
    return {"train": data_digest(task, "train"), "valid": data_digest(task, "valid")}


def told_apart(task: Task) -> dict[str, str]:
    """Tell the data and the functions of a training apart from others.

    Of functions their code alone, without the values they hold: this may be asked after they were
    used, and they may count or collect. A training loop of the user's own need not read "train".
    """
    functions = (task.loss, task.metric.compute, task.train, task.inputs)
    code = {"code": tasks.code_of(*functions, values=False)}
    if task.train is not None:
        return {"valid": data_digest(task, "valid"), **code}
    return {**trained_on(task), **code}


def in_order(loader: Iterable[Any], split: Split) -> Iterable[Any]:
    """Give a split's batches, those of the shuffled training data in the same order every time."""
    return Feed(loader, DRAWS).epoch(1) if split == "train" else loader


class Limited:
    """The first batches of a loader, as often as asked."""

    def __init__(self, start: Callable[[], Iterable[Any]], batches: int) -> None:
        self._start, self._batches = start, batches

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self._start()), self._batches)
