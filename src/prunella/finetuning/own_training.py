"""Training by a loop of the task's own, in place of ours."""

import time
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from prunella.errors import TaskError
from prunella.finetuning.averaging import put
from prunella.finetuning.checkpoint import Saved
from prunella.finetuning.feeding import seed_all
from prunella.finetuning.losses import check_weights
from prunella.finetuning.recipe import Epoch, Finetuned, Recipe
from prunella.finetuning.store import Store
from prunella.masking import apply_mask
from prunella.model.structure import tensors
from prunella.plan import Plan
from prunella.progress import Progress
from prunella.tasks import Task, evaluate


def own_training(
    model: nn.Module,
    task: Task,
    recipe: Recipe,
    plan: Plan | None,
    store: Store,
    progress: Progress | None,
) -> Finetuned:
    """Let the task's own loop train; it is saved when it has ended, not in between."""
    assert task.train is not None
    saved, note = store.read()
    if saved is not None:
        put(model, {name.partition("/")[2]: value for name, value in saved.tensors.items()})
        history = tuple(Epoch(**values) for values in saved.values["history"])
        seconds = sum(epoch.seconds for epoch in history)
        return Finetuned(model, history, seconds, True, resumed=recipe.epochs, note=note)
    start = time.monotonic()
    seed_all(recipe.seed)  # so that a run that was killed ends as one that was not
    try:
        returned = task.train(model, recipe.epochs)
    except Exception as cause:
        raise TaskError(
            f"the training loop of task `{task.name}` raised {type(cause).__name__}: {cause}"
        ) from cause
    trained = model if returned is None else _returned(model, returned, task)
    if plan is not None:
        apply_mask(trained, plan)
    check_weights(trained, recipe.epochs, None)
    metric = evaluate(trained, task, "valid", precision=recipe.precision, progress=progress)
    only = Epoch(recipe.epochs, None, metric, None, time.monotonic() - start)
    named = {f"model/{name}": value for name, value in tensors(trained).items()}
    store.write(Saved(recipe.epochs, named, {"history": [asdict(only)]}))
    return Finetuned(trained, (only,), only.seconds, True, note=note)


def _returned(model: nn.Module, found: Any, task: Task) -> nn.Module:
    """Give the model what a training loop returned, which may be a copy, or wrap it.

    The model itself carries what makes it a pruned one, so it is the one to go on with.
    """
    wanted = _shapes(model)
    inner = found
    while isinstance(inner, nn.Module) and inner is not model and _shapes(inner) != wanted:
        # DataParallel and its like hold the model as `module`, torch.compile as `_orig_mod`.
        inner = getattr(inner, "_orig_mod", None) or getattr(inner, "module", None)
    if isinstance(inner, nn.Module):
        if inner is not model:
            put(model, tensors(inner))
        return model
    other = ""
    if isinstance(found, nn.Module):
        odd = sorted(name for name, _ in _shapes(found).items() ^ wanted.items())
        other = f" with other tensors ({', '.join(f'`{name}`' for name in odd[:3])})"
    raise TaskError(
        f"the training loop of task `{task.name}` must return the model it was given or a copy "
        f"(or None, having trained it in place), got {type(found).__name__}{other}"
    )


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors(model).items()}
