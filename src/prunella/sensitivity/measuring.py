"""Measure the metric with each group alone pruned."""

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from prunella.errors import TaskError
from prunella.journal import Journal
from prunella.masking import zeroed
from prunella.modes import evaluating
from prunella.plan import Group, Groups, Scores
from prunella.sensitivity.course import Course
from prunella.sensitivity.curves import RATIOS, Sensitivity, check_ratios, removed
from prunella.sensitivity.sharing import Evaluate, Shared
from prunella.structure import tensors

Cut = Callable[[nn.Module, Groups, Mapping[str, Sequence[int]]], AbstractContextManager[nn.Module]]
"""Takes some channels of a model (by group) away for a while."""

Progress = Callable[[int, int], None]
"""Told (evaluations done, evaluations in all) after each one."""

log = logging.getLogger("prunella")


def analyze(  # noqa: PLR0913  every argument is one decision of the user's
    model: nn.Module,
    groups: Groups,
    scores: Scores,
    evaluate: Evaluate,
    *,
    metric: str,
    higher_is_better: bool,
    ratios: Iterable[float] = RATIOS,
    record: Path | None = None,
    data: str = "",
    memory: int | None = None,
    cut: Cut = zeroed,
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
    scores or metric is begun again, and the log says why. Other ratios do not make it stale: what
    is known is used.

    Args:
        model: The dense model the groups are of. It is unchanged afterwards.
        groups: From `couple`.
        scores: From `score`; which channels go first.
        evaluate: Computes the metric of the model it is given, on all of the validation data. It
            gets the model in evaluation mode (or a stand-in that shares everything with it) and
            must not change it; it should turn gradients off and take the batches in one order.
        metric: The metric's name, for messages and reports.
        higher_is_better: Whether a larger value of the metric is the better one.
        ratios: Fractions of channels removed, ascending, each in (0, 1).
        record: File of results for going on after a kill; None keeps nothing.
        data: Fingerprint of the data `evaluate` uses, part of what makes a record stale.
        memory: Bytes that may be kept of what evaluations share; where it is not enough, some
            batches run through the whole model. None: a quarter of the free memory, and nothing
            where all evaluations together take seconds. 0: nothing is shared.
        cut: Removes channels for a while: `masking.zeroed`, or what also refits what reads them
            (`Reconstruction.cut`).
        progress: Told how far the analysis is.

    Returns:
        The metric for every group and ratio.

    Raises:
        TaskError: The metric is not a finite number, or evaluating changed the model.
        WorkspaceError: The record was changed by someone else, or cannot be written.
    """
    ratios = tuple(float(ratio) for ratio in ratios)
    check_ratios(ratios)
    weights = _fingerprint(tensors(model))
    known: dict[tuple[str, int], float] = {}
    journal = None
    if record is not None:
        journal = Journal(
            record,
            {
                "weights": weights,
                "structure": groups.graph.digest,
                "data": data,
                "scores": _fingerprint_scores(scores),
                "cut": getattr(cut, "__qualname__", type(cut).__qualname__),
                "metric": f"{metric}, {'higher' if higher_is_better else 'lower'} is better",
            },
        )
        if journal.stale:
            log.warning(
                "the sensitivity in `%s` is computed again: %s changed since it was recorded",
                record,
                ", ".join(journal.stale),
            )
        known = {(e["group"], e["removed"]): e["value"] for e in journal.entries}

    steps = _steps(groups, ratios)
    left = sum(step not in known for step in steps)
    with evaluating(model):
        shared = Shared(model, evaluate, memory)
        for done, (name, count) in enumerate(steps, start=1):
            if (name, count) not in known:
                value = _measure(shared, model, groups, scores, (name, count), left, cut)
                check_value(value, metric, groups, name, count)
                if not count and _fingerprint(tensors(model)) != weights:
                    raise TaskError(
                        "evaluating the model changed its weights or buffers; `evaluate` must "
                        "leave the model as it is (no `model.train()`, no optimizer step)"
                    )
                known[name, count] = value
                left -= 1
                if journal is not None:
                    journal.append({"group": name, "removed": count, "value": value})
            if progress is not None:
                progress(done, len(steps))

    baseline = known["", 0]
    return Sensitivity(
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


def _steps(groups: Groups, ratios: tuple[float, ...]) -> list[tuple[str, int]]:
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


def _measure(
    shared: Shared,
    model: nn.Module,
    groups: Groups,
    scores: Scores,
    step: tuple[str, int],
    left: int,
    cut: Cut,
) -> float:
    """Evaluate the model with a number of a group's channels zeroed."""
    name, count = step
    if not count:
        return float(shared.dense())
    shared.ready(touched(groups[name]), left)
    with cut(model, groups, {name: lowest(scores.values[name], count)}):
        return float(shared.changed())


def touched(group: Group) -> list[str]:
    """List the parameters and buffers that change when channels of a group go."""
    return sorted({axis.tensor for axis in group.axes})


def lowest(scores: np.ndarray, count: int) -> list[int]:
    """List the channels that go first."""
    return [int(channel) for channel in np.argsort(scores, kind="stable")[:count]]


def check_value(value: float, metric: str, groups: Groups, name: str, count: int) -> None:
    """Raise `TaskError` where a metric is not finite; `count` channels of group `name` are gone."""
    if math.isfinite(value):
        return
    where = "of the dense model"
    if count:
        share = count / groups[name].channels
        where = f"with {count} channels of group `{name}` zeroed (ratio {share:.2f})"
    raise TaskError(
        f"the metric `{metric}` is {value} {where}; it must be a finite number. Let the metric "
        "return its worst value where the model's outputs overflow"
    )


def _fingerprint(named: Mapping[str, Tensor]) -> str:
    """Hash names, types, shapes and every bit of the tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(named.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _fingerprint_scores(scores: Scores) -> str:
    digest = hashlib.sha256(scores.criterion.encode())
    for name, values in sorted(scores.values.items()):
        digest.update(name.encode())
        digest.update(np.asarray(values, dtype=np.float64).tobytes())
    return digest.hexdigest()[:16]
