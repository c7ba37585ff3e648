"""A few finetuning experiments, of which the best one's model is kept."""

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from prunella.errors import ConfigError, TaskError
from prunella.experiments.halving import ranked, rungs, total_epochs
from prunella.experiments.ledger import Experiment, Ledger
from prunella.finetuning import DECAYS, Decay, DivergedError, Finetuned, Moments, Recipe, finetune
from prunella.finetuning.fingerprints import told_apart
from prunella.finetuning.moments import digest_moments
from prunella.finetuning.together import together
from prunella.model.structure import weights_digest
from prunella.plan import Plan
from prunella.progress import Progress, numbered, or_silent
from prunella.tasks import Task

_LOG = logging.getLogger("prunella")


@dataclass(frozen=True, slots=True)
class Space:
    """Which experiments there are.

    Args:
        recipe: What all have in common; `recipe.epochs` is the length of a whole experiment.
        lrs: Initial learning rates, the most promising first.
        decays: Decay policies, the most promising first.
        trials: How many of the combinations are tried: those with the most promising values.
    """

    recipe: Recipe
    lrs: tuple[float, ...]
    decays: tuple[Decay, ...] = ("cosine",)
    trials: int = 3

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ConfigError(f"trials is at least 1, got {self.trials}")
        if not self.lrs or not self.decays:
            raise ConfigError("lrs and decays name at least one value each")
        for lr in self.lrs:
            if not lr > 0:
                raise ConfigError(f"lrs are greater than 0, got {lr}")
        for decay in self.decays:
            if decay not in DECAYS:
                raise ConfigError(f"decays are among {', '.join(DECAYS)}, got {decay!r}")

    @property
    def points(self) -> tuple[dict[str, Any], ...]:
        """The combinations tried, in order.

        Example:
            lrs (a, b) and decays (x, y) give (a, x), (b, x), (a, y), (b, y).
        """
        pairs = [
            (first + second, second, lr, decay)
            for first, lr in enumerate(dict.fromkeys(self.lrs))
            for second, decay in enumerate(dict.fromkeys(self.decays))
        ]
        pairs.sort(key=lambda pair: pair[:2])
        return tuple({"lr": lr, "decay": decay} for *_, lr, decay in pairs[: self.trials])

    @property
    def epochs(self) -> int:
        """How many epochs the search costs in all, if no experiment fails."""
        return total_epochs(self.recipe.epochs, len(self.points))


def spread(low: float, high: float, count: int = 3) -> tuple[float, ...]:
    """Choose learning rates between two bounds, evenly in their logarithm, the middle first.

    Example:
        >>> [round(lr, 4) for lr in spread(0.01, 0.09)]
        [0.03, 0.09, 0.01]
    """
    if not 0 < low <= high or count < 1:
        raise ConfigError(f"0 < low <= high and count >= 1, got {low=}, {high=}, {count=}")
    middle = (count - 1) / 2
    places = sorted(range(count), key=lambda place: (abs(place - middle), -place))
    if count == 1 or low == high:
        return ((low * high) ** 0.5,)
    return tuple(low * (high / low) ** (place / (count - 1)) for place in places)


@dataclass(frozen=True, slots=True)
class Search:
    """What a search found.

    Args:
        best: The best experiment's training, with its model.
        recipe: Of that experiment.
        number: Of that experiment.
        value: Its metric on "valid".
        experiments: All of them, by number.
        note: Why experiments that were in the folder were thrown away; "" otherwise.
    """

    best: Finetuned
    recipe: Recipe
    number: int
    value: float
    experiments: tuple[Experiment, ...]
    note: str = ""

    @property
    def model(self) -> nn.Module:
        """The best experiment's model."""
        return self.best.model

    @property
    def epochs(self) -> int:
        """Count the epochs of all experiments, discarded ones included."""
        return sum(experiment.epochs for experiment in self.experiments)


def search(  # noqa: PLR0913
    model: nn.Module,
    task: Task,
    space: Space,
    *,
    folder: Path,
    teacher: nn.Module | None = None,
    plan: Plan | None = None,
    moments: Moments | None = None,
    data: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Search:
    """Finetune a model in several ways and keep the best.

    The experiments run by turns, as `prunella.experiments.halving` says: after half of the epochs
    the better half by the metric on "valid" goes on, and again after half of what remains; the
    others are stopped as hopeless. One whose loss is no longer finite has failed; the others go on.
    Nothing depends on chance, so a search that was killed, and is called again with the same
    arguments, ends as if it had not been: finished epochs are not repeated. Where all have failed,
    the same call tries them again.

    A task with a training loop of its own has one experiment, with `space.recipe`.

    Args:
        model: Left untouched.
        task: Trained and judged on, never on its "test" split.
        space: Which experiments.
        folder: Where the study and the trainings are kept.
        teacher: See `finetune`.
        plan: See `finetune`.
        moments: See `finetune`.
        data: What tells the data apart from others, such as a fingerprint of each split, and the
            functions that train and judge, such as `tasks.code_of`: experiments that were made with
            others are thrown away. None: as `finetune` does.
        progress: See `prunella.progress`.

    Raises:
        TaskError: All experiments failed, or the task misbehaves.
        WorkspaceError: A file in `folder` is damaged or cannot be written.
    """
    if task.train is not None:
        alone = space.recipe
        space = Space(alone, (alone.lr,), (alone.decay,), trials=1)
    processes = Accelerator()
    main = processes.is_main_process
    made_with = together(processes, lambda: told_apart(task) if data is None else dict(data))
    identity = {
        "recipe": asdict(space.recipe),
        "points": space.points,
        "task": task.name,
        "model": weights_digest(model),
        "teacher": weights_digest(teacher) if teacher is not None and space.recipe.taught else None,
        "plan": plan and hashlib.sha256(plan.to_json().encode()).hexdigest(),
        "moments": digest_moments(moments) if moments and space.recipe.carry_state else None,
        "data": made_with,
    }

    def train(number: int, until: int, seen: Callable[[int, float], None]) -> Finetuned:
        def report(epoch: int, loss: float | None, value: float) -> bool:
            seen(epoch, value)
            return epoch >= until

        return finetune(
            model,
            task,
            replace(space.recipe, **space.points[number]),
            teacher=teacher,
            plan=plan,
            moments=moments,
            checkpoint=folder / f"experiment-{number:02d}",
            data=made_with,
            progress=progress,
            report=report,
        )

    with _quiet():
        higher = task.metric.higher_is_better
        ledger = together(
            processes,
            lambda: (
                Ledger(folder, identity, space.points, higher_is_better=higher) if main else None
            ),
        )
        try:
            whole = _Run(processes, task, space, ledger, train)
            return whole.run(or_silent(progress if main else None))
        finally:
            if ledger is not None:
                ledger.close()


class _Run:
    """A search under way; only the main process has a ledger, the others hear from it."""

    def __init__(
        self,
        processes: Accelerator,
        task: Task,
        space: Space,
        ledger: Ledger | None,
        train: Callable[[int, int, Callable[[int, float], None]], Finetuned],
    ) -> None:
        self._processes, self._task, self._space = processes, task, space
        self._ledger, self._train = ledger, train
        note = ledger.note if ledger else ""
        known = ledger.experiments() if ledger else []
        self._all, self._note = (known, note)
        if processes.num_processes > 1:
            self._all, self._note = broadcast_object_list([(known, note)])[0]
        if self._note:
            _LOG.warning(self._note)

    def run(self, progress: Progress) -> Search:
        epochs, count = self._space.recipe.epochs, len(self._all)
        label = f"{numbered(count, 'finetuning experiment')}, epochs"
        with progress(label, self._space.epochs) as advance:
            advance(sum(experiment.epochs for experiment in self._all))
            for until, left in rungs(epochs, count):
                for experiment in self._running():
                    if experiment.epochs < until:
                        self._advance(experiment, until, advance)
                if until < epochs:
                    self._stop(until, left)
        for experiment in self._running():
            self._settle(replace(experiment, state="complete"))
        return self._best()

    def _running(self) -> list[Experiment]:
        return [experiment for experiment in self._all if experiment.state == "running"]

    def _advance(self, old: Experiment, until: int, advance: Callable[[int], None]) -> None:
        known = old.epochs

        def seen(epoch: int, value: float) -> None:
            nonlocal known
            if self._ledger is not None:
                self._ledger.seen(old.number, epoch, value)
            if epoch > known:
                advance(epoch - known)
                known = epoch

        try:
            trained = self._train(old.number, until, seen)
        except DivergedError as cause:
            failed = replace(
                old, state="failed", reason=str(cause), history=cause.history, begun=cause.epoch
            )
            advance(max(cause.epoch - known, 0))
            self._settle(failed)
            return
        self._record(replace(old, history=trained.history))

    def _stop(self, after: int, left: int) -> None:
        metric = self._task.metric
        values = {
            experiment.number: experiment.history[after - 1].metric
            for experiment in self._running()
        }
        order = ranked(values, higher_is_better=metric.higher_is_better)
        for number in order[left:]:
            bound = "at least" if metric.higher_is_better else "at most"
            reason = (
                f"after epoch {after} its {metric.name} was {values[number]:.4f}; the best {left} "
                f"had {bound} {values[order[left - 1]]:.4f}"
            )
            self._settle(replace(self._all[number], state="stopped", reason=reason))

    def _settle(self, experiment: Experiment) -> None:
        self._record(experiment)
        if self._ledger is not None and experiment.state != "complete":
            left = self._ledger.folder / f"experiment-{experiment.number:02d}"
            shutil.rmtree(left, ignore_errors=True)

    def _record(self, experiment: Experiment) -> None:
        self._all[experiment.number] = experiment
        ledger = self._ledger
        together(self._processes, lambda: ledger.record(experiment) if ledger else None)

    def _best(self) -> Search:
        values = {
            experiment.number: experiment.value
            for experiment in self._all
            if experiment.state == "complete" and experiment.value is not None
        }
        if not values:
            raise TaskError(self._why_none())
        best = ranked(values, higher_is_better=self._task.metric.higher_is_better)[0]
        trained = self._train(best, self._space.recipe.epochs, lambda epoch, value: None)
        return Search(
            best=trained,
            recipe=replace(self._space.recipe, **self._space.points[best]),
            number=best,
            value=trained.metric,
            experiments=tuple(self._all),
            note=self._note,
        )

    def _why_none(self) -> str:
        name, found = self._task.name, self._all
        if self._task.train is not None:
            return f"finetuning task `{name}`: {found[0].reason}; the same command then tries again"
        reasons = "; ".join(f"{experiment.settings}: {experiment.reason}" for experiment in found)
        return (
            f"all {len(found)} finetuning experiments on task `{name}` failed: {reasons}. Give "
            "smaller learning rates (`finetune.lr`, or the `lrs` of a `Space`), or repair the loss "
            "or the metric; the same command then tries again"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
