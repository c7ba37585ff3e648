"""The training loop: any model, any task, one process or many, exact when interrupted."""

import copy
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor, nn

from prunella.errors import ConfigError, TaskError
from prunella.finetuning.averaging import Average, put
from prunella.finetuning.checkpoint import Checkpoint, Saved
from prunella.finetuning.features import Features, points_of
from prunella.finetuning.feeding import Feed, own_randomness, seed_all
from prunella.finetuning.fingerprints import told_apart
from prunella.finetuning.learner import Learner, channels_last, make_optimizer
from prunella.finetuning.losses import (
    DivergedError,
    EpochLosses,
    Taught,
    check_inside,
    check_weights,
    loss_of,
)
from prunella.finetuning.moments import Moments, digest_moments, moments_of, remember, strangers
from prunella.finetuning.recipe import Epoch, Finetuned, Recipe
from prunella.finetuning.schedule import factor
from prunella.finetuning.together import together
from prunella.model.blame import own_line
from prunella.model.examples import samples_in
from prunella.model.modes import evaluating
from prunella.model.structure import tensors, weights_digest
from prunella.plan import Plan
from prunella.progress import Progress, or_silent
from prunella.tasks import NotFiniteError, Task, evaluate, open_split, positional, to_device

Report = Callable[[int, float | None, float], bool]

_LOG = logging.getLogger("prunella")


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
    store = _Store(
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
            "data": _from_main(accelerator, told),
        },
    )
    trained = copy.deepcopy(model)
    with own_randomness(accelerator.device):
        if task.train is not None:
            return _own_training(trained, task, recipe, plan, store, progress)
        if not any(parameter.requires_grad for parameter in trained.parameters()):
            raise ConfigError(
                "no parameter of the model requires a gradient, so there is nothing to finetune. "
                "Call `model.requires_grad_(True)` first"
            )
        training = _Training(accelerator, trained, task, recipe, teacher, plan, moments)
        with training.ready():
            return training.run(store, progress, report)


class _Training:
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
            _mask(model, plan)
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

    def run(self, store: "_Store", progress: Progress | None, report: Report | None) -> Finetuned:
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
                metric = float(_from_main(accelerator, judged))
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
            _mask(self._model, self._plan)
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


class _Store:
    """The checkpoint of a training on several processes; or of one that keeps none."""

    def __init__(
        self, accelerator: Accelerator, folder: Path | None, identity: Mapping[str, Any]
    ) -> None:
        self._accelerator = accelerator
        self._checkpoint = None if folder is None else Checkpoint(Path(folder), identity)

    def read(self) -> tuple[Saved | None, str]:
        if self._checkpoint is None:
            return None, ""
        self._accelerator.wait_for_everyone()
        saved, note = self._checkpoint.read()
        if note:
            _LOG.info(note)
        return saved, note

    def write(self, saved: Saved) -> None:
        checkpoint = self._checkpoint
        if checkpoint is not None:
            main = self._accelerator.is_main_process
            together(self._accelerator, lambda: checkpoint.write(saved) if main else None)


def _own_training(
    model: nn.Module,
    task: Task,
    recipe: Recipe,
    plan: Plan | None,
    store: _Store,
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
        _mask(trained, plan)
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


def _told(task: Task, data: Mapping[str, str] | None) -> dict[str, str]:
    return told_apart(task) if data is None else dict(data)


def _mask(model: nn.Module, plan: Plan) -> None:
    from prunella.masking import apply_mask

    apply_mask(model, plan)


def _ask(accelerator: Accelerator, report: Report | None, epoch: Epoch) -> bool:
    def ask() -> bool:
        if report is None or not accelerator.is_main_process:
            return False
        return bool(report(epoch.epoch, epoch.loss, epoch.metric))

    return bool(_from_main(accelerator, together(accelerator, ask)))


def _from_main(accelerator: Accelerator, value: Any) -> Any:
    """Replace a value by the main process's, so that all take the same way."""
    if accelerator.num_processes == 1:
        return value
    return broadcast_object_list([value])[0]
