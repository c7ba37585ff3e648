"""The training loop: any model, any task, one process or many, exact when interrupted."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from prunella.errors import TaskError
from prunella.finetuning.averaging import Average, put
from prunella.finetuning.checkpoint import Saved
from prunella.finetuning.features import Features, points_of
from prunella.finetuning.feeding import Feed
from prunella.finetuning.learner import Learner, channels_last, make_optimizer
from prunella.finetuning.losses import (
    DivergedError,
    EpochLosses,
    Taught,
    check_inside,
    check_weights,
    loss_of,
)
from prunella.finetuning.moments import Moments, moments_of, remember
from prunella.finetuning.recipe import Epoch, Finetuned, Recipe
from prunella.finetuning.schedule import factor
from prunella.finetuning.store import Store
from prunella.finetuning.together import from_main, together
from prunella.masking import apply_mask
from prunella.model.blame import own_line
from prunella.model.examples import samples_in
from prunella.model.modes import evaluating
from prunella.model.structure import tensors
from prunella.plan import Plan
from prunella.progress import Progress, or_silent
from prunella.tasks import NotFiniteError, Task, evaluate, open_split, positional, to_device

Report = Callable[[int, float | None, float], bool]

_LOG = logging.getLogger("prunella")


class Training:
    """One training under way."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        task: Task,
        recipe: Recipe,
        teacher: nn.Module | None,
        plan: Plan | None,
        moments: Moments | None,
    ) -> None:
        self._accelerator = accelerator
        self._device = next(model.parameters()).device
        self._model, self._teacher = model, teacher
        self._task, self._recipe, self._plan = task, recipe, plan
        optimizer = make_optimizer(model, recipe)
        self._alone = Learner(model, recipe)  # which waits for no other process
        self._learner, self._optimizer = accelerator.prepare(self._alone, optimizer)
        self._plain_optimizer = optimizer
        if moments:
            remember(model, optimizer, moments)
        if plan is not None:
            apply_mask(model, plan)
        self._features: Features | None = None
        self._average = Average(model, recipe.ema) if recipe.ema else None

    def ready(self) -> ExitStack:
        """Borrow the teacher; give the model back in the mode, memory order and place it had."""
        stack = ExitStack()
        flags = {module: module.training for module in self._model.modules()}

        def back() -> None:
            self._model.to(self._device)
            for module, training in flags.items():
                module.training = training
            if self._recipe.channels_last:
                self._model.to(memory_format=torch.contiguous_format)

        stack.callback(back)
        if self._teacher is not None:
            stack.enter_context(evaluating(self._teacher.to(self._accelerator.device)))
            if self._recipe.feature_distill:
                self._features = self._compared(self._teacher)
                stack.callback(self._features.close)
        return stack

    def _compared(self, teacher: nn.Module) -> Features:
        # Chosen on inputs that are always the same, so that a training that goes on has the same.
        example = to_device(self._task.example_inputs, self._accelerator.device)
        points = points_of(self._model, teacher, example, self._plan)
        _LOG.info("features compared with the teacher's: %s", "; ".join(map(str, points)))
        return Features(self._model, teacher, points)

    def run(self, store: Store, progress: Progress | None, report: Report | None) -> Finetuned:
        """Train what of the recipe's epochs the store does not have; see `finetune`."""
        accelerator, recipe = self._accelerator, self._recipe
        shown = or_silent(progress if accelerator.is_main_process else None)
        feed = Feed(
            open_split(self._task, "train"),
            recipe.seed,
            accelerator.process_index,
            accelerator.num_processes,
        )
        steps = together(accelerator, lambda: feed.steps(shown))
        if not steps:
            raise TaskError(
                f"split `train` of task `{self._task.name}` has fewer batches than there are "
                f"processes ({accelerator.num_processes}). Start fewer, or make smaller batches"
            )
        history: list[Epoch] = []
        saved, note = store.read()
        if saved is not None:
            history = [Epoch(**values) for values in saved.values["history"]]
            self._restore(saved)
        resumed = len(history)
        stop = [_ask(accelerator, report, epoch) for epoch in history][-1:] == [True]
        while len(history) < recipe.epochs and not stop:
            number = len(history) + 1
            start = time.monotonic()
            try:
                loss = self._epoch(number, steps, feed, shown)
                judged = together(accelerator, partial(self._judge, number, steps, shown))
                metric = float(from_main(accelerator, judged))
            except DivergedError as error:
                error.history = tuple(history)
                raise
            rate = recipe.lr * self._factor(number * steps - 1, steps)
            history.append(Epoch(number, loss, metric, rate, time.monotonic() - start))
            store.write(self._state(history))
            stop = _ask(accelerator, report, history[-1])
        if self._average is not None:
            put(self._model, self._average.values)
        return Finetuned(
            model=self._model,
            history=tuple(history),
            seconds=sum(epoch.seconds for epoch in history),
            finished=len(history) == recipe.epochs,
            resumed=resumed,
            note=note,
            moments=moments_of(self._model, self._plain_optimizer) if recipe.carry_state else {},
        )

    def _epoch(self, number: int, steps: int, feed: Feed, progress: Progress) -> float:
        self._learner.train()
        losses = EpochLosses(number, self._accelerator)
        before = (number - 1) * steps
        with progress(f"finetuning, epoch {number}/{self._recipe.epochs}", steps) as advance:
            for step, (batch, inputs) in enumerate(self._batches(feed, number), start=before):
                losses.add(self._step(step, steps, batch, inputs))
                advance(1)
        mean = losses.mean()
        if self._accelerator.num_processes > 1:
            # Gradients were averaged, batch norm's statistics were not.
            for name, buffer in self._model.named_buffers():
                broadcast(buffer)
                if self._average is not None:
                    broadcast(self._average.values[name])
        check_weights(self._model, number, steps)
        return mean

    def _batches(self, feed: Feed, number: int) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        """Yield an epoch's batches, and the model's inputs in each."""
        source = feed.epoch(number)

        def take() -> tuple[Any, tuple[Any, ...]] | None:
            for batch in source:
                moved = to_device(batch, self._accelerator.device)
                return moved, positional(self._task, moved)
            return None

        while (taken := together(self._accelerator, take, often=True)) is not None:
            yield taken

    def _step(self, step: int, steps: int, batch: Any, inputs: tuple[Any, ...]) -> Tensor:
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.lr * self._factor(step, steps)
        now = (step // steps + 1, step % steps + 1)
        loss = together(self._accelerator, lambda: self._loss(batch, inputs, now), often=True)
        self._accelerator.backward(loss)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._plan is not None:
            apply_mask(self._model, self._plan)
        if self._average is not None:
            self._average.update(step)
        return loss

    def _loss(self, batch: Any, inputs: tuple[Any, ...], now: tuple[int, int]) -> Tensor:
        try:
            outputs = self._run(inputs, now)
            return loss_of(self._task, self._recipe, outputs, batch, self._taught(inputs))
        except TaskError:  # as losses do raise on weights that are no numbers any more
            check_weights(self._model, *now)
            raise

    def _run(self, inputs: tuple[Any, ...], now: tuple[int, int]) -> Any:
        try:
            return self._learner(*inputs)
        except Exception as cause:
            check_weights(self._model, *now)
            check_inside(self._model, lambda: self._alone(*inputs), *now)
            raise TaskError(_why(cause, self._task, inputs)) from cause

    def _taught(self, inputs: tuple[Any, ...]) -> Taught | None:
        if self._teacher is None:
            return None
        if self._recipe.channels_last:
            inputs = tuple(channels_last(value) for value in inputs)
        half = self._recipe.precision == "bf16"
        kind = self._accelerator.device.type
        with torch.no_grad(), torch.autocast(kind, torch.bfloat16, enabled=half):
            outputs = self._teacher(*inputs)
        return Taught(outputs, self._features.take() if self._features is not None else ())

    def _factor(self, step: int, steps: int) -> float:
        recipe = self._recipe
        return factor(step, steps * recipe.epochs, decay=recipe.decay, warmup=recipe.warmup)

    def _judge(self, number: int, steps: int, progress: Progress) -> float:
        with nullcontext() if self._average is None else self._average.in_place():
            try:
                return evaluate(
                    self._model,
                    self._task,
                    "valid",
                    precision=self._recipe.precision,
                    progress=progress,
                )
            except NotFiniteError as cause:
                what = f"metric `{self._task.metric.name}` is not finite on split `valid`"
                raise DivergedError(what, number, steps) from cause
            except TaskError as cause:
                raise TaskError(f"after epoch {number} of finetuning: {cause}") from cause

    def _state(self, history: list[Epoch]) -> Saved:
        named: dict[str, Tensor] = {}
        for name, value in tensors(self._model).items():
            named[f"model/{name}"] = value
        for name, value in (self._average.values if self._average else {}).items():
            named[f"average/{name}"] = value
        for index, state in self._plain_optimizer.state_dict()["state"].items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    named[f"optimizer/{index}/{key}"] = value
        return Saved(len(history), named, {"history": [asdict(epoch) for epoch in history]})

    def _restore(self, saved: Saved) -> None:
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
        for name, value in saved.tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = value
        put(self._model, parts["model"])
        if self._average is not None:
            self._average.values.update(to_device(parts["average"], self._accelerator.device))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in parts["optimizer"].items():
            index, _, key = name.partition("/")
            state.setdefault(int(index), {})[key] = value
        groups = self._plain_optimizer.state_dict()["param_groups"]
        self._plain_optimizer.load_state_dict({"state": state, "param_groups": groups})


def _why(cause: Exception, task: Task, inputs: tuple[Any, ...]) -> str:
    """Say what to do about a model that raises in training mode."""
    samples = samples_in(inputs)
    remedy = (
        " A norm cannot learn from one value per channel: leave out a last batch of one sample "
        "(`DataLoader(..., drop_last=True)`), or choose another batch size"
        if samples == 1
        else ""
    )
    return (
        f"the model of task `{task.name}` raised {type(cause).__name__} in training mode, on a "
        f"batch of {samples} sample{'' if samples == 1 else 's'}{own_line(cause)}: {cause}.{remedy}"
    )


def _ask(accelerator: Accelerator, report: Report | None, epoch: Epoch) -> bool:
    def ask() -> bool:
        if report is None or not accelerator.is_main_process:
            return False
        return bool(report(epoch.epoch, epoch.loss, epoch.metric))

    return bool(from_main(accelerator, together(accelerator, ask)))
