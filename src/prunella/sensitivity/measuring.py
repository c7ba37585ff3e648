"""Measure the metric with each group alone pruned."""

import hashlib
import logging
import math
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from prunella.calibration import Calibration, fingerprint
from prunella.errors import ConfigError, TaskError
from prunella.journal import Journal
from prunella.masking import zeroed
from prunella.model.modes import buffers_kept, evaluating
from prunella.model.structure import check_numbers, hashed, tensors, weights_digest
from prunella.plan import Group, Groups, Scores, check_scores
from prunella.process_group import dist
from prunella.repairing.reconstructing import Reconstruction
from prunella.replaying import Course
from prunella.sensitivity.curves import RATIOS, Sensitivity, read_ratios, removed
from prunella.sensitivity.defined import finite_or_none
from prunella.sensitivity.processes import Step, Value, check_workers, shared_out
from prunella.sensitivity.ranks import check_ranks, dealt_out, first_of
from prunella.sensitivity.recalibrating import recalibrated
from prunella.sensitivity.samplewise import Samplewise
from prunella.sensitivity.settling import Settling
from prunella.sensitivity.sharing import Evaluate, Shared
from prunella.tasks import code_of

Cut = Callable[[nn.Module, Groups, Mapping[str, Sequence[int]]], AbstractContextManager[nn.Module]]
"""Takes some channels of a model (by group) away for a while."""

Progress = Callable[[int, int], None]
"""Told (evaluations done, evaluations in all) after each one."""

log = logging.getLogger("prunella")


def analyze(  # noqa: PLR0913  every argument is one decision of the user's
    model: nn.Module,
    groups: Groups,
    scores: Scores,
    evaluate: Evaluate | Samplewise,
    *,
    metric: str,
    higher_is_better: bool,
    ratios: Iterable[float] = RATIOS,
    record: Path | str | None = None,
    data: str = "",
    memory: int | None = None,
    cut: Cut = zeroed,
    recalibrate: Calibration | None = None,
    workers: int = 1,
    together: bool = False,
    confidence: float | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Evaluate the model with each group alone pruned at each ratio.

    The lowest-scored channels of one group are zeroed in place, the model is evaluated, and its
    weights are put back bit for bit. Ratios that remove the same number of channels share one
    evaluation; a ratio that removes none has the baseline's value.

    What comes before the first operator that reads a group is computed once for all its ratios, by
    the captured graph, and the next group goes on from there: about half of the work in a deep
    network. The numbers are the same, bit for bit: the graph must return what the model returns on
    every batch before it is used, and whatever is not as it was when the dense model was evaluated
    (other batches, hooks, gradients on) runs as the model itself; the log says so.

    With `record`, every value is on the disk before the next is computed: an analysis that was
    killed goes on where it was. A record made with other weights, another structure, other data,
    scores or metric, or by another `evaluate`, is begun again, and the log says why. Other ratios
    do not make it stale: what is known is used.

    A network that lost channels may be beyond the metric: it is NaN, divides by zero, or raises on
    outputs that are not finite. Such a value is None, counts as the worst (`Sensitivity.worst`),
    and the log says where. Of the dense model it is an error.

    Args:
        model: The dense model the groups are of. It is unchanged afterwards.
        groups: From `couple`.
        scores: From `score`; which channels go first.
        evaluate: Computes the metric of the model it is given, on all of the validation data. It
            gets the model in evaluation mode (or a stand-in that shares everything with it) and
            must not change it; it should turn gradients off and take the batches in one order.
            A `Samplewise` is one, and can stop early.
        metric: The metric's name, for messages and reports.
        higher_is_better: Whether a larger value of the metric is the better one.
        ratios: Fractions of channels removed, ascending, each in (0, 1).
        record: File of results for going on after a kill; None keeps nothing.
        data: Fingerprint of the data and values `evaluate` uses, part of what makes a record stale;
            so is its code.
        memory: Bytes that may be kept of what evaluations share; where it is not enough, some
            batches run through the whole model. None: a quarter of the free memory, and nothing
            where all evaluations together take seconds. 0: nothing is shared.
        cut: Removes channels for a while: `masking.zeroed`, or what also refits what reads them
            (`Reconstruction.cut`).
        recalibrate: Batches on which the batch norms from the group on get new statistics before
            each evaluation, for a while; they cost a forward pass each. None: as trained.
        workers: Processes that measure side by side, on the CPU with one thread each. The numbers
            are those of one process; this one alone writes the record.
        together: All processes of the default group of `torch.distributed` call this, with the same
            arguments, and share the groups among them; the first alone writes the record, and all
            return the same.
        confidence: Stop an evaluation where its answer is settled: with this confidence, each
            value by itself, the loss is known to a fifth of itself (or to 0.4% of the metric's
            range). None: all of the data, always.
        progress: Told how far the analysis is.

    Returns:
        The metric for every group and ratio.

    Raises:
        TaskError: The dense model's metric is no finite number, evaluating changed the model, or a
            process was ended from outside.
        ConfigError: There cannot be so many workers here; or there is a `confidence`, and
            `evaluate` does not judge sample by sample, or beyond its bounds.
        WorkspaceError: The record was changed by someone else, or cannot be written.
    """
    ratios = read_ratios(ratios)
    check_scores(groups, scores)
    if not callable(evaluate):
        raise ConfigError(
            "`evaluate` is a function that computes the metric of the model it is given, got "
            f"{evaluate!r}"
        )
    check_workers(workers, model)
    check_numbers(model, "measuring sensitivity", changing=True)
    if together:
        check_ranks(workers)
    judge = evaluate if confidence is None else _settling(evaluate, confidence)
    weights = weights_digest(model)[:16]
    key = {
        "weights": weights,
        "structure": groups.graph.digest,
        "data": data if confidence is None else f"{data}, {judge}",
        "scores": _fingerprint_scores(scores),
        "cut": _fingerprint_cut(cut, recalibrate),
        "metric": f"{metric}, {'higher' if higher_is_better else 'lower'} is better",
        "evaluate": code_of(evaluate, values=False)[:16],
    }
    opened = partial(_recalled, record, key)
    journal, known = first_of(opened) if together else opened()

    steps = _steps(groups, ratios)
    todo = [step for step in steps if step not in known]
    shared = Shared(model, judge, memory, workers)
    loop = _Loop(model, groups, scores, cut, recalibrate, judge, shared)
    done = 0
    for done in range(1, len(steps) - len(todo) + 1):
        _report(progress, done, len(steps))
    with evaluating(model), closing(loop.measure(todo, workers, together=together)) as values:
        for (name, count), value in values:
            if not count:
                check_dense(value, metric)
            known[name, count] = value
            if journal is not None:
                journal.append({"group": name, "removed": count, "value": value})
            done += 1
            _report(progress, done, len(steps))

    if isinstance(judge, Settling) and workers == 1:
        log.info("values were settled after %.0f%% of the samples", 100 * judge.share)
    baseline = known["", 0]
    assert baseline is not None, "it is checked when it is measured"
    found = Sensitivity(
        metric=metric,
        higher_is_better=higher_is_better,
        baseline=baseline,
        ratios=ratios,
        curves={
            group.name: tuple(
                known[group.name, count] if count else baseline
                for count in (removed(ratio, group.channels) for ratio in ratios)
            )
            for group in groups
        },
        channels={group.name: group.channels for group in groups},
    )
    if found.gaps:
        log.warning("%s", found.gaps)
    return found


def _recalled(
    record: Path | str | None, key: Mapping[str, str]
) -> tuple[Journal | None, dict[Step, Value]]:
    """Open the record, and return it with what it knows."""
    if record is None:
        return None, {}
    journal = Journal(record, key)
    if journal.stale:
        log.warning(
            "the sensitivity in `%s` is computed again: %s changed since it was recorded",
            record,
            ", ".join(journal.stale),
        )
    return journal, {(e["group"], e["removed"]): e["value"] for e in journal.entries}


def _settling(evaluate: Evaluate | Samplewise, confidence: float) -> Settling:
    if not isinstance(evaluate, Samplewise):
        raise ConfigError(
            f"{confidence=} stops evaluations early, which takes a metric that is a mean over "
            "samples and says what each is worth: give a `sensitivity.Samplewise` as `evaluate`, "
            "or leave `confidence` out"
        )
    return Settling(evaluate, confidence)


def _steps(groups: Groups, ratios: tuple[float, ...]) -> list[Step]:
    """List what to evaluate: ("", 0) is the dense model, then group and channels removed.

    The groups come in the order in which the network first reads them, so that what can be shared
    only ever grows.
    """
    course = Course(groups.graph)
    steps = [("", 0)]
    for group in sorted(groups, key=lambda group: course.first_use(touched(group))):
        counts = sorted({removed(ratio, group.channels) for ratio in ratios} - {0})
        steps += [(group.name, count) for count in counts]
    return steps


def _report(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)


@dataclass(frozen=True, eq=False)
class _Loop:
    """Everything that one measurement after the other needs."""

    model: nn.Module
    groups: Groups
    scores: Scores
    cut: Cut
    recalibrate: Calibration | None
    judge: Evaluate
    shared: Shared

    def measure(
        self, todo: Sequence[Step], workers: int, *, together: bool
    ) -> Generator[tuple[Step, Value]]:
        """Yield the value of every step, the dense model's first."""
        dense, rest = [s for s in todo if not s[1]], [s for s in todo if s[1]]
        if together:
            yield from dealt_out(todo, partial(self.one, left=len(rest) // dist.get_world_size()))
            return
        for step in dense:
            yield step, self._dense()
        if workers > 1 and rest:
            # What is found out here is known in all processes.
            self._compare()
            self.shared.ready(touched(self.groups[rest[0][0]]), len(rest))
            yield from shared_out(rest, workers, partial(self.one, left=len(rest)))
        else:
            for i, step in enumerate(rest):
                yield step, self.one(step, left=len(rest) - i)

    def one(self, step: Step, left: int) -> Value:
        """Evaluate the model with a number of a group's channels cut; None where that cannot be."""
        name, count = step
        if not count:
            return self._dense()
        self._compare()
        changing = touched(self.groups[name])
        with buffers_kept(self.model):
            self.shared.ready(changing, left)
        gone = {name: lowest(self.scores.values[name], count)}
        with (
            cast_anew(self.cut(self.model, self.groups, gone)),
            self._recalibrated(changing),
            buffers_kept(self.model),
        ):
            return finite_or_none(self.shared.changed, self.model)

    def _dense(self) -> float:
        """Evaluate the dense model, and see that it is as it was."""
        before = hashed(_learned(self.model))
        with buffers_kept(self.model):
            value = number(self.shared.dense())
            if hashed(_learned(self.model)) != before:
                raise TaskError(
                    "evaluating the model changed its weights or buffers; `evaluate` must "
                    "leave the model as it is (no `model.train()`, no optimizer step)"
                )
        return value

    def _compare(self) -> None:
        """Evaluate the dense model where its samples are compared with and not yet known."""
        if isinstance(self.judge, Settling) and not self.judge.begun:
            self._dense()

    def _recalibrated(self, changing: Collection[str]) -> AbstractContextManager[None]:
        if self.recalibrate is None:
            return nullcontext()
        course = Course(self.groups.graph)
        behind = course.nodes[course.first_use(changing) :]
        return recalibrated(self.model, self.recalibrate, {node.module for node in behind})


@contextmanager
def cast_anew(cut: AbstractContextManager[nn.Module]) -> Iterator[nn.Module]:
    """Have weights that are cut cast again, where all this runs inside the user's autocast.

    It keeps what it has cast until it ends, whatever becomes of the weights meanwhile.
    """
    try:
        with cut as model:
            torch.clear_autocast_cache()
            yield model
    finally:
        torch.clear_autocast_cache()


def touched(group: Group) -> list[str]:
    """List the parameters and buffers that change when channels of a group go."""
    return sorted({axis.tensor for axis in group.axes})


def lowest(scores: np.ndarray, count: int) -> list[int]:
    """List the channels that go first."""
    return [int(channel) for channel in np.argsort(scores, kind="stable")[:count]]


def number(found: Any) -> float:
    """Read what `evaluate` returned of the dense model.

    Raises:
        TaskError: It is no number.
    """
    try:
        return float(found)
    except (TypeError, ValueError, RuntimeError) as cause:
        raise TaskError(
            f"`evaluate` returned a {type(found).__name__} that is no number ({cause}). Return the "
            "metric of the model it is given, a float"
        ) from cause


def check_dense(value: Value, metric: str) -> None:
    """Raise `TaskError` where the dense model's metric is no finite number."""
    if value is None or not math.isfinite(value):
        raise TaskError(
            f"the metric `{metric}` is {value} of the dense model; it must be a finite number. "
            "Check the metric for a division by zero, and the model's outputs for values that are "
            "not finite"
        )


def _learned(model: nn.Module) -> dict[str, Tensor]:
    """List what training changes: the parameters and the statistics of norms.

    Other buffers a model may write to whenever it runs; they are put back.
    """
    norms = [m for m in model.modules() if isinstance(m, _NormBase)]
    statistics = {id(b) for norm in norms for b in norm.buffers(recurse=False)}
    parameters = dict(model.named_parameters())
    return {n: t for n, t in tensors(model).items() if n in parameters or id(t) in statistics}


def _fingerprint_cut(cut: Cut, recalibrate: Calibration | None) -> str:
    name = getattr(cut, "__qualname__", type(cut).__qualname__)
    refitting = getattr(cut, "__self__", None)
    if isinstance(refitting, Reconstruction):
        name += f" refitting on {refitting.data}"
    if recalibrate is None:
        return name
    return f"{name}, batch norms recalibrated on {fingerprint(recalibrate)}"


def _fingerprint_scores(scores: Scores) -> str:
    digest = hashlib.sha256(scores.criterion.encode())
    for name, values in sorted(scores.values.items()):
        digest.update(name.encode())
        digest.update(np.asarray(values, dtype=np.float64).tobytes())
    return digest.hexdigest()[:16]
