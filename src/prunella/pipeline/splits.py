"""A look at the splits and the loss of a task before the long work, or it costs hours to find."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any

import torch

from prunella import tasks
from prunella.errors import TaskError
from prunella.finetuning import Recipe
from prunella.finetuning.feeding import Feed, own_chance
from prunella.finetuning.losses import loss_of
from prunella.model.blame import own_line
from prunella.model.modes import copied
from prunella.pipeline.context import Context
from prunella.pipeline.defaults import suggested
from prunella.tasks import Split


def look_at_splits(context: Context, *splits: Split) -> None:
    """Open splits, and take the model's inputs out of the first batch of each; nothing is judged.

    Raises:
        TaskError: A split cannot be opened, is empty, or has batches that `inputs` cannot read.
    """
    for split in splits:
        try:
            _look(context, split)
        except TaskError as cause:
            if split != "test":
                raise
            raise TaskError(
                f"{cause}. The split `test` judges the final model, once, at the end of a run: "
                "hold some data out for it before the work begins"
            ) from cause


def look_at_training(context: Context) -> None:
    """Compute the training loss of the dense model on a first batch, as finetuning will.

    Batches that have no length are counted: that they have no end is found now, not hours later.

    Raises:
        TaskError: The model raises in training mode, or the loss does, or is not one number.
    """
    task, settings = context.task, context.config.finetune
    distill = suggested(task).get("distill") if settings.distill is None else settings.distill
    if task.train is not None:
        return
    with own_chance(0, context.device):
        Feed(tasks.open_split(task, "train"), 0).steps(context.progress)
    if distill == 1:  # the loss is then never asked for
        return
    with (
        own_chance(0, context.device),
        closing(Feed(tasks.open_split(task, "train"), 0).epoch(1)) as found,  # type: ignore[type-var]
    ):
        batch = tasks.to_device(next(found), context.device)
        try:
            with torch.no_grad():  # which takes less memory than a pruned model's training
                _first_loss(context, batch)
        except TaskError:  # as where a loss asks for gradients itself
            _first_loss(context, batch)


def _first_loss(context: Context, batch: Any) -> None:
    task = context.task
    inputs = tasks.positional(task, batch)
    model = copied(context.dense).train()  # in that mode it may write into its own weights
    try:
        outputs = model(*inputs)
    except Exception as cause:
        raise TaskError(
            f"the dense model raised {type(cause).__name__}{own_line(cause)} in training mode, "
            f"on the first batch of split `train`: {cause}. It is finetuned in that mode"
        ) from cause
    loss_of(task, Recipe(), outputs, batch)


def _look(context: Context, split: Split) -> None:
    task = context.task
    loader = tasks.open_split(task, split)
    if split == "train" and task.train is None and _only_once(loader):
        raise TaskError(
            f"`data` of task `{task.name}` gives the batches of split `train` as a "
            f"{type(loader).__name__}, which is through after one epoch. They are read again and "
            "again: return a list, a DataLoader, or an object whose `__iter__` begins anew"
        )
    with own_chance(0, torch.device("cpu")):
        batches = (
            Feed(loader, 0).epoch(1)
            if split == "train"
            else tasks.batches(loader, f"split `{split}`")
        )
        with closing(batches) as found:  # type: ignore[type-var]
            tasks.positional(task, next(found))


def _only_once(loader: Iterable[Any]) -> bool:
    """Tell Python's own iterators: others may begin anew when they are asked for one again."""
    return isinstance(loader, Iterator) and type(loader).__module__ in ("builtins", "itertools")
