"""Finetuning as a stage: a few experiments, of which the best goes on."""

import logging
import time
from dataclasses import fields
from typing import Any

from prunella.finetuning import Recipe, finetune
from prunella.pipeline.context import Context, weights_digest
from prunella.pipeline.slots import Slot
from prunella.pipeline.stages import Made, Start, remembered, to_train, trained
from prunella.storing import save
from prunella.workspace import Entry

log = logging.getLogger("prunella")


def recipe_of(context: Context, epochs: int) -> Recipe:
    """Put the user's settings over the task's suggestions over the defaults."""
    settings, run = context.config.finetune, context.config.run
    known = {field.name for field in fields(Recipe)}
    suggested = {key: value for key, value in context.task.settings.items() if key in known}
    given = settings.model_dump(
        include={
            "optimizer",
            "momentum",
            "weight_decay",
            "warmup",
            "distill",
            "temperature",
            "ema",
        },
        exclude_none=True,
    )
    fixed = {"epochs": epochs, "seed": run.seed, "precision": run.precision}
    return Recipe(**{**suggested, **given, **fixed})


def heal(
    context: Context, slot: Slot, start: Start, pruned: Entry, baseline: Entry, *, last: bool
) -> Entry:
    """Finetune the model of an attempt."""
    settings = context.config.finetune
    epochs = settings.last_epochs if last and settings.last_epochs else settings.epochs
    recipe = recipe_of(context, epochs)
    inputs: dict[str, Any] = {
        "pruned": pruned.payload["model"],
    }

    def make() -> Made:
        began = time.perf_counter()
        model, plan = to_train(context, slot, start)
        found = finetune(
            model,
            context.task,
            recipe,
            teacher=context.dense,
            plan=plan,
            checkpoint=context.space.path(slot.name, "experiments"),
            progress=context.progress,
        )
        healed = trained(found.model, plan)
        context.space.replace_folder(f"{slot.name}/finetuned", lambda folder: save(healed, folder))
        return {
            "metric": found.metric,
            "model": weights_digest(healed),
            "epochs": len(found.history),
            "experiments": [],
            "seconds": time.perf_counter() - began,
        }, (f"{slot.name}/finetuned",)

    log.info("%s: finetuning", slot)
    return remembered(context, slot.record("finetune"), inputs, make)
