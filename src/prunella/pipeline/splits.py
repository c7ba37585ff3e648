"""A look at the splits of a task before the long work, or a missing one costs hours to find."""

from contextlib import closing

import torch

from prunella import tasks
from prunella.errors import TaskError
from prunella.finetuning.feeding import Feed, own_chance
from prunella.pipeline.context import Context
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


def _look(context: Context, split: Split) -> None:
    task = context.task
    loader = tasks.open_split(task, split)
    with own_chance(0, torch.device("cpu")):
        batches = (
            Feed(loader, 0).epoch(1)
            if split == "train"
            else tasks.batches(loader, f"split `{split}`")
        )
        with closing(batches) as found:  # type: ignore[type-var]
            tasks.positional(task, next(found))
