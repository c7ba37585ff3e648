"""Measure what each group is worth: the metric with that group alone pruned, ratio by ratio."""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from torch import Tensor, nn

from prunella.errors import ConfigError, TaskError, WorkspaceError
from prunella.journal import Journal
from prunella.masking import zeroed
from prunella.modes import evaluating
from prunella.plan import Groups, Scores, nearest
from prunella.structure import tensors

SCHEMA = 1
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

Evaluate = Callable[[nn.Module], float]
Progress = Callable[[int, int], None]
"""Told (evaluations done, evaluations in all) after each one."""

log = logging.getLogger("prunella")


@dataclass(frozen=True)
class Sensitivity:
    """The metric of the task with one group alone pruned.

    `curves[group][i]` is the metric with `removed(ratios[i], channels[group])` of that group's
    lowest-scored channels zeroed and everything else dense; `baseline` is the dense model's.
    """

    metric: str
    higher_is_better: bool
    baseline: float
    ratios: tuple[float, ...]
    curves: Mapping[str, tuple[float, ...]]
    channels: Mapping[str, int]

    def __post_init__(self) -> None:
        _check_ratios(self.ratios)
        for name, curve in self.curves.items():
            if len(curve) != len(self.ratios) or self.channels.get(name, 0) < 1:
                raise ConfigError(
                    f"the sensitivity of `{name}` needs one value for each of the "
                    f"{len(self.ratios)} ratios and the group's number of channels, got "
                    f"{len(curve)} values and {self.channels.get(name)} channels"
                )

    def damage(self, group: str, kept_channels: int) -> float:
        """Predict how much of the metric is lost when `group` keeps so many of its channels.

        A measured improvement counts as no loss; the measured losses are made non-decreasing in
        the number of removed channels (least squares), joined linearly from 0 at nothing removed,
        and continued past the last one by its slope or the average slope, the steeper.

        Args:
            group: Name of an analysed group.
            kept_channels: How many channels remain, from 0 to all.

        Returns:
            The loss in units of the metric, >= 0, never falling as channels are removed.

        Raises:
            ConfigError: The group was not analysed, or has no such number of channels.
        """
        if group not in self.curves:
            raise ConfigError(
                f"the sensitivity knows no group {group!r}{nearest(group, self.curves)}; it was "
                "made for another model or another `exclude`: run the analysis again"
            )
        channels = self.channels[group]
        if not 0 <= kept_channels <= channels:
            raise ConfigError(
                f"`{group}` has {channels} channels, so it keeps 0 to {channels}, "
                f"got {kept_channels=}"
            )
        shares, losses = self._fits[group]
        share = (channels - kept_channels) / channels
        if share <= shares[-1]:
            return float(np.interp(share, shares, losses))
        if len(shares) == 1:
            return 0.0  # nothing was ever removed: nothing is known
        last = (losses[-1] - losses[-2]) / (shares[-1] - shares[-2])
        slope = max(last, losses[-1] / shares[-1])
        return float(losses[-1] + slope * (share - shares[-1]))

    @cached_property
    def _fits(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Removed shares (ascending, from 0) and the non-decreasing losses there, per group."""
        return {name: self._fit(name) for name in self.curves}

    def _fit(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        sign = 1.0 if self.higher_is_better else -1.0
        channels = self.channels[name]
        losses = {
            removed(ratio, channels) / channels: max(0.0, sign * (self.baseline - value))
            for ratio, value in zip(self.ratios, self.curves[name], strict=True)
        }
        losses.pop(0.0, None)
        shares = np.array([0.0, *losses])
        if not losses:
            return shares, np.zeros(1)
        fitted = isotonic_regression(list(losses.values())).x
        return shares, np.concatenate([[0.0], fitted])

    def to_json(self) -> str:
        """Write as JSON; every number survives exactly."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> "Sensitivity":
        """Read what `to_json` wrote.

        Raises:
            WorkspaceError: The text is not a sensitivity, or of another schema.
        """
        try:
            data = json.loads(text)
            if data.pop("schema") != SCHEMA:
                raise WorkspaceError(
                    f"this sensitivity has another schema than {SCHEMA}. Run the analysis again"
                )
            return Sensitivity(
                metric=str(data["metric"]),
                higher_is_better=bool(data["higher_is_better"]),
                baseline=float(data["baseline"]),
                ratios=tuple(float(ratio) for ratio in data["ratios"]),
                curves={
                    str(name): tuple(float(value) for value in curve)
                    for name, curve in data["curves"].items()
                },
                channels={str(name): int(count) for name, count in data["channels"].items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError) as cause:
            raise WorkspaceError(
                f"this is not a sensitivity written by Prunella ({type(cause).__name__}: {cause}). "
                "Run the analysis again"
            ) from cause


def removed(ratio: float, channels: int) -> int:
    """Count the channels that go at a ratio: what stays is rounded as by `allocate`, at least 1.

    Example:
        >>> removed(0.25, 10), removed(0.9, 4), removed(0.1, 4)
        (2, 3, 0)
    """
    return channels - max(1, math.floor((1 - ratio) * channels + 0.5))


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
    progress: Progress | None = None,
) -> Sensitivity:
    """Evaluate the model with each group alone pruned at each ratio.

    The lowest-scored channels of one group are zeroed in place, the model is evaluated, and its
    weights are put back bit for bit. Ratios that remove the same number of channels share one
    evaluation; a ratio that removes none has the baseline's value.

    With `record`, every value is on the disk before the next is computed: an analysis that was
    killed goes on where it was. A record made with other weights, another structure, other data,
    scores or metric is begun again, and the log says why. Other ratios do not make it stale: what
    is known is used.

    Args:
        model: The dense model the groups are of. It is unchanged afterwards.
        groups: From `couple`.
        scores: From `score`; which channels go first.
        evaluate: Computes the metric of the model it is given, on all of the validation data. It
            gets the model in evaluation mode and must not change it.
        metric: The metric's name, for messages and reports.
        higher_is_better: Whether a larger value of the metric is the better one.
        ratios: Fractions of channels removed, ascending, each in (0, 1).
        record: File of results for going on after a kill; None keeps nothing.
        data: Fingerprint of the data `evaluate` uses, part of what makes a record stale.
        progress: Told how far the analysis is.

    Returns:
        The metric for every group and ratio.

    Raises:
        TaskError: The metric is not a finite number, or evaluating changed the model.
        WorkspaceError: The record was changed by someone else, or cannot be written.
    """
    ratios = tuple(float(ratio) for ratio in ratios)
    _check_ratios(ratios)
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
    total = len(steps)
    with evaluating(model):
        for done, (name, count) in enumerate(steps, start=1):
            if (name, count) not in known:
                cut = {name: _lowest(scores.values[name], count)} if count else {}
                with zeroed(model, groups, cut):
                    value = float(evaluate(model))
                _check_value(value, metric, groups, name, count)
                if not count and _fingerprint(tensors(model)) != weights:
                    raise TaskError(
                        "evaluating the model changed its weights or buffers; `evaluate` must "
                        "leave the model as it is (no `model.train()`, no optimizer step)"
                    )
                known[name, count] = value
                if journal is not None:
                    journal.append({"group": name, "removed": count, "value": value})
            if progress is not None:
                progress(done, total)

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
    """List what to evaluate: ("", 0) is the dense model, then group and channels removed."""
    steps = [("", 0)]
    for group in groups:
        counts = sorted({removed(ratio, group.channels) for ratio in ratios} - {0})
        steps += [(group.name, count) for count in counts]
    return steps


def _lowest(scores: np.ndarray, count: int) -> list[int]:
    return [int(channel) for channel in np.argsort(scores, kind="stable")[:count]]


def _check_ratios(ratios: tuple[float, ...]) -> None:
    ascending = all(a < b for a, b in pairwise(ratios))
    if not ratios or not ascending or not (ratios[0] > 0 and ratios[-1] < 1):
        raise ConfigError(
            f"ratios are fractions of channels removed, ascending, each in (0, 1), got {ratios=}"
        )


def _check_value(value: float, metric: str, groups: Groups, name: str, count: int) -> None:
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
