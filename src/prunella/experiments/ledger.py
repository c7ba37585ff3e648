"""The list of experiments on disk: an Optuna study in SQLite, which survives `kill -9`.

SQLite rather than Optuna's journal file: a line the journal was killed in the middle of, or for
which the disk had no room, makes the whole file unreadable.
"""

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from prunella.errors import WorkspaceError
from prunella.finetuning import Epoch

FILE = "study.sqlite"
_STUDY = "finetuning"
_STATES = {
    "complete": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


@dataclass(frozen=True, slots=True)
class Experiment:
    """One finetuning tried: its settings, its epochs so far, and what came of it.

    `reason` says why it was stopped or failed. `seconds` is spent in finished epochs.
    """

    number: int
    settings: Mapping[str, Any]
    state: Literal["running", "complete", "stopped", "failed"] = "running"
    reason: str = ""
    history: tuple[Epoch, ...] = field(default=())
    begun: int = 0

    @property
    def value(self) -> float | None:
        """The metric on "valid" after its last finished epoch."""
        return self.history[-1].metric if self.history else None

    @property
    def epochs(self) -> int:
        """Count its epochs, the one in which it failed included."""
        return max(self.begun, self.history[-1].epoch if self.history else 0)

    @property
    def seconds(self) -> float:
        """Add up its finished epochs."""
        return sum(epoch.seconds for epoch in self.history)


class Ledger:
    """The study of one search.

    Args:
        folder: Where its file is.
        identity: What the search is made from, plain JSON; a study of another identity, and the
            trainings beside it, are thrown away. So is one whose experiments have all failed: who
            searches again wants them tried again.
        points: The settings of each experiment, in order.
        higher_is_better: The metric's direction.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        points: tuple[Mapping[str, Any], ...],
        *,
        higher_is_better: bool,
    ) -> None:
        self.folder = folder
        self.note = ""
        self._points = points
        wanted = json.dumps(identity, sort_keys=True)
        with self.guarded():
            folder.mkdir(parents=True, exist_ok=True)
            self._open(higher_is_better)
            if self._study.user_attrs.get("identity", wanted) != wanted:
                self.note = (
                    f"the experiments in `{folder}` were made with other settings, from another "
                    "model, on other data or with another loss or metric: they were thrown away"
                )
                self._renew(higher_is_better)
            elif self._all_failed():
                # What a library runs has no fingerprint: it may have been repaired since.
                self._renew(higher_is_better)
            self._study.set_user_attr("identity", wanted)
            for point in points[len(self._study.trials) :]:
                self._study.enqueue_trial(dict(point))

    def _open(self, higher_is_better: bool) -> None:
        self._storage = RDBStorage(f"sqlite:///{self.folder / FILE}")
        self._study = optuna.create_study(
            storage=self._storage,
            study_name=_STUDY,
            direction="maximize" if higher_is_better else "minimize",
            load_if_exists=True,
            # Every experiment is enqueued: no sampler is asked, so nothing depends on chance.
            sampler=optuna.samplers.RandomSampler(seed=0),
        )

    def _all_failed(self) -> bool:
        trials = self._study.trials
        return bool(trials) and all(trial.state == TrialState.FAIL for trial in trials)

    def _renew(self, higher_is_better: bool) -> None:
        self.close()
        # The study last: a kill in between leaves no training without what it was made from.
        for left in self.folder.glob("experiment-*"):
            shutil.rmtree(left)
        (self.folder / FILE).unlink()
        self._open(higher_is_better)

    def close(self) -> None:
        """Let go of the file."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def experiments(self) -> list[Experiment]:
        """Read every experiment as far as it is known."""
        with self.guarded():
            while any(trial.state == TrialState.WAITING for trial in self._study.trials):
                self._ask()
            return [self._read(trial) for trial in self._study.trials[: len(self._points)]]

    def seen(self, number: int, epoch: int, value: float) -> None:
        """Note an experiment's value after an epoch; again is harmless."""
        with self.guarded():
            trial = self._trial(number)
            if epoch not in self._study.trials[number].intermediate_values:
                trial.report(value, epoch)

    def record(self, experiment: Experiment) -> None:
        """Write an experiment down; in any state but "running" that is final."""
        with self.guarded():
            trial = self._trial(experiment.number)
            record = {
                "history": [asdict(epoch) for epoch in experiment.history],
                "reason": experiment.reason,
                "begun": experiment.begun,
            }
            trial.set_user_attr("record", record)
            if experiment.state != "running":
                value = experiment.value if experiment.state == "complete" else None
                self._study.tell(trial, value, state=_STATES[experiment.state])

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn a damaged or unwritable file into a WorkspaceError."""
        path = self.folder / FILE
        try:
            yield
        except OSError as cause:
            raise WorkspaceError(
                f"cannot write in `{self.folder}`: {cause}. Free some space (or allow writing "
                "there) and give the same command again"
            ) from cause
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as cause:
            text = _complaint(cause)
            if "not a database" in text or "malformed" in text:
                raise WorkspaceError(
                    f"`{path}` is damaged: {text}. Put back the file that was written, or delete "
                    f"`{path}` and give the same command again: the trainings beside it are kept "
                    "and go on"
                ) from cause
            raise WorkspaceError(
                f"cannot use `{path}`: {text}. Free some space, allow writing there, or end the "
                "other program that has it open, and give the same command again"
            ) from cause

    def _ask(self) -> None:
        trial = self._study.ask()
        for name in self._points[0]:
            choices = tuple(dict.fromkeys(point[name] for point in self._points))
            trial.suggest_categorical(name, choices)

    def _trial(self, number: int) -> Trial:
        return Trial(self._study, self._study.trials[number]._trial_id)

    def _read(self, trial: FrozenTrial) -> Experiment:
        names = {state: name for name, state in _STATES.items()}
        record = trial.user_attrs.get("record", {})
        return Experiment(
            number=trial.number,
            settings=dict(self._points[trial.number]),
            state=names.get(trial.state, "running"),  # type: ignore[arg-type]
            reason=record.get("reason", ""),
            history=tuple(Epoch(**values) for values in record.get("history", ())),
            begun=record.get("begun", 0),
        )


def _complaint(error: Exception) -> str:
    """Find what SQLite said inside the errors of the libraries above it."""
    inner: BaseException | None = error
    while inner is not None:
        origin = getattr(inner, "orig", inner)
        if isinstance(origin, sqlite3.Error):
            return str(origin)
        inner = inner.__cause__ or inner.__context__
    return str(error)
