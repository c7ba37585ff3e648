"""Finetune a model: by our loop or the task's own, from the start or from a checkpoint."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from prunella.errors import ConfigError
from prunella.finetuning.feeding import own_randomness
from prunella.finetuning.fingerprints import told_apart
from prunella.finetuning.loop import Report, Training
from prunella.finetuning.moments import Moments, digest_moments, strangers
from prunella.finetuning.own_training import own_training
from prunella.finetuning.recipe import Finetuned, Recipe
from prunella.finetuning.store import Store
from prunella.finetuning.together import from_main, together
from prunella.model.modes import copied
from prunella.model.structure import weights_digest
from prunella.plan import Plan
from prunella.progress import Progress
from prunella.tasks import Task


def finetune(  # noqa: PLR0913
    model: nn.Module,
    task: Task,
    recipe: Recipe,
    *,
    teacher: nn.Module | None = None,
    plan: Plan | None = None,
    moments: Moments | None = None,
    checkpoint: Path | None = None,
    data: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
) -> Finetuned:
    """Train a copy of a model.

    Runs through Hugging Face Accelerate: on whichever device it chooses, and under `accelerate
    launch` spread over processes, each taking a share of the batches. On a CPU with the same
    number of threads and processes, a training interrupted and resumed ends with the very weights
    of one that was not, as long as the training data are a pure function of (seed, epoch).

    Args:
        model: Any model, usually a pruned one; left untouched.
        task: Whose "train" split is trained on and whose "valid" split judges each epoch. Its own
            `train`, where it has one, is called instead of this loop.
        recipe: How.
        teacher: The original model, for the recipe's `distill` and `feature_distill`; without it
            both are off.
        plan: Keep what this plan removes at zero after every step: masked training of a dense
            model. None for a pruned model.
        moments: What an optimizer of the same kind remembers of the training before, cut like the
            model (`finetuning.cut_moments`); for `recipe.carry_state`.
        checkpoint: Folder in which each finished epoch is saved, and from which training goes on.
            With several processes all must see it. One that was made of something else (another
            model, other data, another loss, ...) is begun again, and the result's `note` says why.
        data: What tells the data and the functions of the task apart from others. None: that is
            found out where there is a `checkpoint`, from the first batches of both splits and the
            code of the functions, without the values they hold.
        progress: See `prunella.progress`.
        report: Called after each epoch with its number, loss and metric on "valid"; True ends the
            training there. Epochs taken from a checkpoint are reported again, so that a decision
            cut off by a kill is made after all.

    Raises:
        DivergedError: The loss or the weights are not finite. (A TaskError.)
        TaskError: The task's data, loss, metric or training loop raises.
        WorkspaceError: The checkpoint is damaged, or the disk is full.
        ConfigError: No parameter of the model can be trained, or `moments` are of another model or
            another optimizer.
    """
    if not recipe.taught or task.train is not None:
        teacher = None
    moments = moments if recipe.carry_state and task.train is None else None
    if moments and (odd := strangers(moments, recipe.optimizer)):
        raise ConfigError(
            f"the moments are of another optimizer: {odd} mean nothing to {recipe.optimizer!r}. "
            "Give those of an optimizer of the same kind, or none: it then begins anew"
        )
    accelerator = Accelerator()
    told = together(accelerator, partial(_told, task, data)) if checkpoint else None
    store = Store(
        accelerator,
        checkpoint,
        {
            "recipe": asdict(recipe),
            "task": task.name,
            "model": weights_digest(model),
            "teacher": teacher and weights_digest(teacher),
            "plan": plan and hashlib.sha256(plan.to_json().encode()).hexdigest(),
            "moments": moments and digest_moments(moments),
            "processes": accelerator.num_processes,
            "data": from_main(accelerator, told),
        },
    )
    trained = copied(model)
    with own_randomness(accelerator.device):
        if task.train is not None:
            return own_training(trained, task, recipe, plan, store, progress)
        if not any(parameter.requires_grad for parameter in trained.parameters()):
            raise ConfigError(
                "no parameter of the model requires a gradient, so there is nothing to finetune. "
                "Call `model.requires_grad_(True)` first"
            )
        training = Training(accelerator, trained, task, recipe, teacher, plan, moments)
        with training.ready():
            return training.run(store, progress, report)


def _told(task: Task, data: Mapping[str, str] | None) -> dict[str, str]:
    return told_apart(task) if data is None else dict(data)
