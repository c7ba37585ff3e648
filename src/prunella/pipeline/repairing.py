"""Repair in a run: training inputs, without labels, by which channels are ranked and refitted."""

from dataclasses import dataclass

import torch
from torch import nn

from prunella import tasks
from prunella.calibration import Calibration
from prunella.finetuning.feeding import Feed, own_chance
from prunella.masking import zeroed
from prunella.model.examples import Arguments, samples_in
from prunella.pipeline.context import Context
from prunella.plan import Groups, Plan, Scores
from prunella.repairing.compensating import compensate
from prunella.repairing.reconstructing import reconstruct
from prunella.scoring import score
from prunella.sensitivity import Cut


@dataclass(frozen=True, eq=False)
class Ranking:
    """Which channels go first, and how they are taken away to measure what is lost."""

    scores: Scores
    cut: Cut = zeroed


def repairs(context: Context) -> bool:
    """Say whether what stays is fitted to make up for what goes."""
    if context.config.prune.repair and context.graph.recorded:
        context.note(
            "nothing is repaired: this model's course depends on the data, so it could only be "
            "captured as one recorded run, which cannot be fitted to other inputs"
        )
        return False
    return context.config.prune.repair


def ranking(context: Context, model: nn.Module, groups: Groups) -> Ranking:
    """Rank the channels of a model's groups."""
    criterion = context.config.prune.criterion
    named = criterion != "auto"
    inputs = inputs_of(context) if named or repairs(context) else None
    scores = score(model, groups, criterion, inputs) if named else score(model, groups)
    if inputs is None or not repairs(context):
        return Ranking(scores)
    found = reconstruct(model, groups, scores, inputs, progress=context.progress)
    return Ranking(scores if named else found.scores, found.cut)


def repaired(context: Context, model: nn.Module, plan: Plan) -> nn.Module:
    """Return the model to cut: what stays makes up for what goes, where that is asked for."""
    if not repairs(context):
        return model
    return compensate(model, plan, inputs_of(context), progress=context.progress)


def inputs_of(context: Context) -> Calibration:
    """Return the first inputs of the training data, in the order of the run's seed."""
    wanted, seed = context.config.prune.calibration, context.config.run.seed
    task = context.task
    batches: list[Arguments] = []
    count = 0
    with own_chance(seed, torch.device("cpu")):
        for batch in Feed(tasks.open_split(task, "train"), seed).epoch(1):
            args = tasks.positional(task, batch)
            batches.append((tasks.to_device(args, context.device), {}))
            count += samples_in(args)
            if count >= wanted:
                break
    return Calibration(batches)
