"""The loss of each step, its mean over an epoch, and the alarm when it is not finite."""

import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunella.distilling import distillation, feature_distance
from prunella.errors import TaskError
from prunella.finetuning.recipe import Epoch, Recipe
from prunella.model.outputs import finite, tensors_in
from prunella.tasks import Task

# Looking at a loss makes an accelerator wait for it, so many are looked at together.
_LOOK_EVERY = 20

_LOG = logging.getLogger("prunella")


class DivergedError(TaskError):
    """The loss or the weights are no longer finite, in a step of an epoch, both 1-based.

    `step` is None where a loop of the task's own trained. `history` has the epochs finished before.
    """

    def __init__(self, what: str, epoch: int, step: int | None) -> None:
        super().__init__(what, epoch, step)  # as it was called, or no other process could have it
        self.epoch = epoch
        self.step = step
        self.history: tuple[Epoch, ...] = ()

    def __str__(self) -> str:
        what = self.args[0]
        if self.step is None:
            return (
                f"{what} after the task's own training loop: the training has diverged. Lower the "
                "learning rate that the loop sets; Prunella's `lr` and `warmup` do not reach it"
            )
        return (
            f"{what}, in epoch {self.epoch}, step {self.step}: the training has diverged. Lower "
            "the learning rate (`lr`), or raise `warmup`"
        )


@dataclass(frozen=True, eq=False)
class Taught:
    """What a teacher says of a batch: its outputs, and pairs of the model's features and its."""

    outputs: Any
    features: Sequence[tuple[Tensor, Tensor]] = ()


def loss_of(
    task: Task, recipe: Recipe, outputs: Any, batch: Any, taught: Taught | None = None
) -> Tensor:
    """Mix the task's loss and the distance to the teacher.

        (1 - distill) * loss + distill * distillation + feature_distill * feature_distance,
        or the loss alone without a teacher

    It is NaN where the task's loss raises on outputs that are not finite: the training has
    diverged, which `EpochLosses` finds out in all processes at the same step.

    Raises:
        TaskError: The task's loss raises or is not one number.
    """
    share = 0.0 if taught is None else recipe.distill
    mixed: Tensor | None = None
    if share < 1:
        try:
            mixed = task.loss(outputs, batch)
        except Exception as cause:
            lost = _lost(outputs)
            if lost is not None:
                _LOG.info("the loss raised on outputs that are not finite: %s", cause)
                return lost
            raise TaskError(
                f"the loss of task `{task.name}` raised {type(cause).__name__}: {cause}. It is "
                "called as loss(outputs, batch) with the model's outputs in training mode"
            ) from cause
        if not isinstance(mixed, Tensor) or mixed.numel() != 1:
            found = tuple(mixed.shape) if isinstance(mixed, Tensor) else type(mixed).__name__
            raise TaskError(
                f"the loss of task `{task.name}` must be a tensor of one number, got {found}"
            )
    if taught is not None and share:
        away = distillation(outputs, taught.outputs, recipe.temperature)
        mixed = share * away if mixed is None else (1 - share) * mixed + share * away
    assert mixed is not None, "either share is below 1 or it is above 0"
    if taught is not None and taught.features:
        mixed = mixed + recipe.feature_distill * feature_distance(taught.features)
    return mixed


def _lost(outputs: Any) -> Tensor | None:
    """Make a NaN of outputs that are not finite, through which gradients go as through a loss."""
    if finite(outputs):
        return None
    learnt = [tensor for tensor in tensors_in(outputs) if tensor.requires_grad]
    return math.nan * torch.stack([tensor.sum() for tensor in learnt]).sum() if learnt else None


class EpochLosses:
    """The losses of one epoch, over all processes.

    Args:
        epoch: Its number, 1-based.
        accelerator: Accelerate's, which gathers from all processes.
    """

    def __init__(self, epoch: int, accelerator: Any) -> None:
        self._epoch, self._accelerator = epoch, accelerator
        self._waiting: list[Tensor] = []
        self._sum, self._count = 0.0, 0

    def add(self, loss: Tensor) -> None:
        """Take in the loss of the next step."""
        self._waiting.append(loss.detach().float().reshape(()))
        if len(self._waiting) == _LOOK_EVERY:
            self._look()

    def mean(self) -> float:
        """Compute the mean of all losses taken in.

        Raises:
            DivergedError: One was not finite.
        """
        self._look()
        return self._sum / max(self._count, 1)

    def _look(self) -> None:
        if not self._waiting:
            return
        # Every process sees the losses of all, so that all stop at the same step.
        mine = torch.stack(self._waiting)
        everyone = self._accelerator.gather(mine).reshape(-1, len(mine)).mean(0).tolist()
        for step, value in enumerate(everyone, start=self._count + 1):
            if not math.isfinite(value):
                raise DivergedError(f"the loss is {value}", self._epoch, step)
        self._sum += sum(everyone)
        self._count += len(everyone)
        self._waiting.clear()


def check_weights(model: nn.Module, epoch: int, step: int | None) -> None:
    """Raise DivergedError if a parameter has a value that is not finite."""
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise DivergedError(f"`{name}` has values that are not finite", epoch, step)


def check_inside(model: nn.Module, run: Callable[[], object], epoch: int, step: int) -> None:
    """Raise DivergedError if a module makes what is not finite in a run that raises."""
    found: list[str] = []
    names = {module: name for name, module in model.named_modules()}

    def look(module: nn.Module, args: Any, outputs: Any) -> None:
        if not found and not finite(outputs):
            found.append(names[module])

    hooks = [module.register_forward_hook(look) for module in names]
    try:
        with torch.no_grad(), contextlib.suppress(Exception):
            run()
    finally:
        for hook in hooks:
            hook.remove()
    if found:
        raise DivergedError(f"what `{found[0]}` makes is not finite", epoch, step)
