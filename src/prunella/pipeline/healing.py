"""Finetuning as a stage: a few experiments, of which the best goes on."""

import logging
import shutil
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from prunella.experiments import Experiment, Space, search
from prunella.finetuning import Decay, Recipe, cut_moments
from prunella.finetuning.moments import Moments, read_moments, strangers, write_moments
from prunella.model.structure import weights_digest
from prunella.pipeline.context import Context
from prunella.pipeline.defaults import suggested
from prunella.pipeline.keeping import making_way
from prunella.pipeline.peers import by_first
from prunella.pipeline.remembering import Made, remembered
from prunella.pipeline.slots import Slot
from prunella.pipeline.stages import Start, to_train, trained
from prunella.plan import Plan
from prunella.progress import numbered
from prunella.storing import save
from prunella.workspace import Entry, Workspace, digest_file

# Rates to try where the user names none, as multiples of the task's, the most promising first.
_AROUND = (1.0, 0.3, 3.0)

# Decay policies to try where neither user nor task names one.
_DECAYS: tuple[Decay, ...] = ("cosine", "linear")

_MOMENTS = Path("optimizer", "moments.safetensors")
"""In the folder of an attempt: what the optimizer remembers at its end."""

log = logging.getLogger("prunella")


def space_of(context: Context, *, last: bool) -> Space:
    """Put the user's settings over the task's suggestions over the defaults."""
    settings, run = context.config.finetune, context.config.run
    known = {field.name for field in fields(Recipe)}
    suggestions = suggested(context.task)
    given = settings.model_dump(include=known - {"lr"}, exclude_none=True)
    given |= run.model_dump(include={"seed", "precision"}, exclude_none=True)
    if last and settings.last_epochs:
        given["epochs"] = settings.last_epochs
    chosen = {**suggestions, **given}
    recipe = Recipe(**chosen)
    if recipe.distill and "distill" not in chosen and (why := context.mute):
        context.note(f"finetuning learns from the labels alone: {why}")
        recipe = replace(recipe, distill=0.0)
    lrs = settings.lr or tuple(float(f"{recipe.lr * factor:.3g}") for factor in _AROUND)
    own = (recipe.decay,) if "decay" in suggestions else _DECAYS
    return Space(recipe, lrs, settings.decays or own, settings.trials)


def heal(context: Context, slot: Slot, start: Start, pruned: Entry, *, last: bool) -> Entry:
    """Finetune the pruned model of an attempt in a few ways, and keep the best on valid.

    Args:
        context: Of the run.
        slot: The attempt.
        start: The model it was pruned from, which masked training starts with.
        pruned: The record of the pruning.
        last: Whether this is to be the last round, which may have epochs of its own.
    """
    settings = context.config.finetune
    space = space_of(context, last=last)
    inputs: dict[str, Any] = {
        "pruned": pruned.payload["model"],
        "data": dict(context.data),
        "code": dict(context.code),
        "teacher": context.weights if space.recipe.taught else "none",
        "recipe": asdict(space.recipe),
        "experiments": list(space.points),
        "masked": settings.masked,
    }
    carried = _carried(context, start, space.recipe)
    if carried is not None:
        inputs["optimizer"] = digest_file(carried)
    folder = context.space.path(slot.name, "experiments")
    make_way = making_way(context, slot)

    def make() -> Made:
        began = time.perf_counter()
        by_first(context.peers, make_way)
        tried = numbered(len(space.points), "experiment")
        how = "the task's own training" if context.task.train else tried
        log.info("%s: finetuning, %s", slot, how)
        model, plan = to_train(context, slot, start)
        moments = read_moments(carried) if carried is not None else None
        if moments is not None and plan is None:
            moments = cut_moments(moments, _step(context, slot))
        found = search(
            model.train(),  # as a loop of the user's own would find a model it has just built
            context.task,
            space,
            folder=folder,
            teacher=context.dense,
            plan=plan,
            moments=moments,
            data={**context.data, **context.code},
            progress=context.progress,
        )
        healed = trained(found.model.to(context.device), plan)
        left = found.best.moments
        if left and plan is not None:
            left = cut_moments(left, plan)
        files = by_first(context.peers, lambda: _kept(context.space, slot, healed, left))
        seconds = sum(experiment.seconds for experiment in found.experiments)
        return {
            "metric": found.value,
            "model": weights_digest(healed),
            "epochs": found.epochs,
            "experiments": [_row(each, found.number) for each in found.experiments],
            "recipe": asdict(found.recipe),
            "seconds": max(seconds, time.perf_counter() - began),
        }, files

    entry = remembered(context, slot.record("finetune"), inputs, make, together=True)
    # The result is on disk: what only served to go on after a kill may go.
    context.peers.wait()
    for checkpoint in folder.glob("experiment-*"):
        shutil.rmtree(checkpoint, ignore_errors=True)
    return entry


def _kept(
    space: Workspace, slot: Slot, healed: nn.Module, moments: Moments | None
) -> tuple[str, ...]:
    """Write what the best experiment ended with, and return which folders that is."""
    weights, state = f"{slot.name}/finetuned", f"{slot.name}/{_MOMENTS.parent}"
    space.replace_folder(weights, lambda fresh: save(healed, fresh))
    if not moments:
        return (weights,)
    space.replace_folder(state, lambda fresh: write_moments(moments, fresh / _MOMENTS.name))
    return (weights, state)


def _carried(context: Context, start: Start, recipe: Recipe) -> Path | None:
    """Find what the optimizer is to begin with, where it is to begin with something."""
    path = context.space.folder / start.name / _MOMENTS
    if not recipe.carry_state or start.name == "dense" or not path.exists():
        return None
    if odd := strangers(read_moments(path), recipe.optimizer):
        context.note(
            f"the optimizer begins anew, without the state of the round before: {odd} mean nothing "
            f"to {recipe.optimizer!r}"
        )
        return None
    return path


def _step(context: Context, slot: Slot) -> Plan:
    return Plan.from_json((context.space.folder / slot.name / "step.json").read_text())


def _row(experiment: Experiment, best: int) -> dict[str, Any]:
    return {
        "number": experiment.number,
        "settings": dict(experiment.settings),
        "state": experiment.state,
        "metric": experiment.value,
        "epochs": [
            {"epoch": epoch.epoch, "loss": epoch.loss, "metric": epoch.metric}
            for epoch in experiment.history
        ],
        "seconds": experiment.seconds,
        "best": experiment.number == best,
        "reason": experiment.reason,
    }
