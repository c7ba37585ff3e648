"""Predict what measuring would find, from a few samples and a few evaluations."""

import logging
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from scipy.optimize import isotonic_regression
from torch import nn

from prunella.calibration import Calibration
from prunella.errors import ConfigError
from prunella.masking import zeroed
from prunella.model.modes import buffers_kept, evaluating
from prunella.model.structure import check_numbers
from prunella.plan import Groups, Scores, check_kind
from prunella.repairing.divergence import distance, divergence, divergence_from
from prunella.sensitivity.curves import RATIOS, Sensitivity, largest, read_ratios, removed
from prunella.sensitivity.defined import finite_or_none
from prunella.sensitivity.measuring import (
    Cut,
    Progress,
    analyze,
    cast_anew,
    check_dense,
    lowest,
    number,
)
from prunella.sensitivity.processes import Step, Value
from prunella.sensitivity.sharing import Evaluate
from prunella.sensitivity.sloping import loss_on, slopes_of

PROBES = 6
DIVERGENCE = "divergence from the dense model"
_DISTANCE = "distance from the dense model"
_LITTLE = 0.25
"""At such a distance slopes count half, and soon no more: far from the dense model the loss is not
linear, and they are large. Set with ResNet-56 and MobileNetV2, in benchmarks/analysis_cost."""

_SAME = 0.05
"""Two ways to compute one loss may differ so much: in precision, or how the last batch counts."""

log = logging.getLogger("prunella")


def estimate(  # noqa: PLR0913  every argument is one decision of the user's
    model: nn.Module,
    groups: Groups,
    scores: Scores,
    data: Calibration,
    evaluate: Evaluate | None = None,
    *,
    metric: str = DIVERGENCE,
    higher_is_better: bool = False,
    ratios: Iterable[float] = RATIOS,
    probes: int = PROBES,
    labelled: Calibration | None = None,
    curvature: Scores | None = None,
    cut: Cut = zeroed,
    record: Path | str | None = None,
    memory: int | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Predict the sensitivity of every group, at a small part of the cost of `analyze`.

    How far the outputs move when channels go says which groups matter nearly as well as the metric
    does (`repairing.divergence.distance`), and it needs a few dozen samples where the metric needs
    thousands: each sample is compared with itself, not counted as right or wrong. So every group is
    cut at every ratio on the calibration data alone, without labels, sharing what comes before the
    group. A few of these cuts, from harmless to fatal, are then evaluated in full, and an
    increasing function through them turns distance into metric.

    The rank of what was not evaluated is that of the distance; its value is as good as one function
    for all groups can be. A metric that is a loss can be known better. Of a cross-entropy, what it
    rises by is exactly the divergence, and beside it the product of what the outputs move by with
    what each sample's label says of the dense model's error. The first needs no labels and few
    samples; the second is nearly linear while they move little, and one pass of gradients gives it
    for every channel, on all samples that the metric is of (`labelled`). It is most of what little
    cuts do.

    Args:
        model: The dense model the groups are of. It is unchanged afterwards.
        groups: From `couple`.
        scores: From `score`; which channels go first.
        data: Batches of inputs, a few dozen samples.
        evaluate: Computes the metric, as in `analyze`. None: the loss of `labelled`; without those
            the result is the divergence itself (`repairing.divergence.divergence`).
        metric: The metric's name.
        higher_is_better: Whether a larger value of the metric is the better one.
        ratios: Fractions of channels removed, ascending, each in (0, 1).
        probes: How many cuts are evaluated in full, besides the dense model.
        labelled: All samples that the metric is of, with the loss that is the metric:
            `Calibration(batches, loss)`. None: the metric is no loss. Not with `curvature`.
        curvature: What the loss rises by when a channel goes alone, as one pass of gradients
            predicts it (`score(model, groups, "fisher", data)`). With it no distances are measured:
            they are the sums over the channels removed. Cheaper still, and good while little is
            removed.
        cut: As in `analyze`.
        record: File of the distances for going on after a kill; None keeps nothing.
        memory: As in `analyze`.
        progress: Told how far the measuring of distances is.

    Returns:
        The predicted metric for every group and ratio.

    Raises:
        ConfigError: There is nothing to turn distances into the metric with; or `labelled` has no
            loss, or goes with another cut than `zeroed`, with `curvature` or with a metric of which
            more is better.
        TaskError: As `analyze`; or the outputs hold nothing to measure a distance of.
    """
    if (evaluate is not None or labelled is not None) and probes < 1:
        raise ConfigError(
            f"at least one cut is evaluated to know the metric's units, got {probes=}"
        )
    check_numbers(model, "estimating sensitivity", changing=True)
    ratios = read_ratios(ratios)
    slopes, there = None, None
    if labelled is not None:
        check_kind(labelled, Calibration)
        _check_loss(cut, curvature, higher_is_better=higher_is_better)
        steep, there = slopes_of(model, groups, labelled)
        slopes = _summed(groups, scores, steep, ratios)
        if evaluate is None:
            evaluate, metric = loss_on(labelled), "loss" if metric == DIVERGENCE else metric
    if curvature is not None:
        near = _summed(groups, scores, curvature, ratios)
    else:
        near = analyze(
            model,
            groups,
            scores,
            divergence_from(model, data, divergence if evaluate is None else distance),
            metric=DIVERGENCE if evaluate is None else _DISTANCE,
            higher_is_better=False,
            ratios=ratios,
            cut=cut,
            record=record,
            memory=memory,
            progress=progress,
        )
    if evaluate is None:
        return near
    cells = _spread(near, probes)
    values: list[Value] = []
    with evaluating(model):
        with buffers_kept(model):
            baseline = number(evaluate(model))
        check_dense(baseline, metric)
        if there is not None and abs(baseline - there) > _SAME * max(abs(baseline), abs(there)):
            raise ConfigError(
                f"`evaluate` says {baseline:.4g} of the dense model, and the loss of `labelled` is "
                f"{there:.4g}: they must be the same, of the same samples. Leave out one of them"
            )
        for name, count in cells:
            gone = {name: lowest(scores.values[name], count)}
            with cast_anew(cut(model, groups, gone)), buffers_kept(model):
                values.append(finite_or_none(partial(evaluate, model), model))
    if None in values:
        log.warning(
            "the metric `%s` is no finite number with %d of the %d cuts that were evaluated, or "
            "the model raises, which counts as the worst",
            metric,
            values.count(None),
            len(values),
        )
    return _converted(
        near, slopes, cells, baseline, values, metric, higher_is_better=higher_is_better
    )


def _check_loss(cut: Cut, curvature: Scores | None, *, higher_is_better: bool) -> None:
    if higher_is_better:
        raise ConfigError(
            "`labelled` is for a metric that is a loss, of which less is better: leave it out, or "
            "evaluate the loss"
        )
    if cut is not zeroed:
        raise ConfigError(
            "`labelled` says what the loss rises by when channels are zeroed, and no more: leave "
            "out `cut`, or `labelled`"
        )
    if curvature is not None:
        raise ConfigError(
            "`labelled` goes with distances that are measured: leave out `curvature`, or `labelled`"
        )


def _summed(
    groups: Groups, scores: Scores, curvature: Scores, ratios: tuple[float, ...]
) -> Sensitivity:
    """Add up what the channels that go are worth one by one."""
    curves: dict[str, tuple[float, ...]] = {}
    for group in groups:
        order = lowest(scores.values[group.name], group.channels)
        sums = np.concatenate([[0.0], np.cumsum(curvature.values[group.name][order])])
        curves[group.name] = tuple(float(sums[removed(r, group.channels)]) for r in ratios)
    channels = {group.name: group.channels for group in groups}
    return Sensitivity(curvature.criterion, False, 0.0, ratios, curves, channels)


def _spread(near: Sensitivity, count: int) -> list[Step]:
    """Choose cuts at even steps from those that move the outputs least to those that do most."""
    found = {step: value for step, value in _by_step(near).items() if step[1]}
    order = sorted(found, key=lambda cell: (found[cell], cell))
    places = np.linspace(0, len(order) - 1, min(count, len(order)) + 1)[1:]
    return [order[round(place)] for place in places]


def _converted(
    near: Sensitivity,
    slopes: Sensitivity | None,
    cells: Sequence[Step],
    baseline: float,
    values: Sequence[Value],
    metric: str,
    *,
    higher_is_better: bool,
) -> Sensitivity:
    """Give distances in units of the metric, which is known of the dense model and some cuts.

    Where slopes are known, distances give what is beyond them.
    """
    at = _by_step(near)
    given = dict.fromkeys(at, 0.0) if slopes is None else _by_step(slopes)
    straight = {step: slope / (1 + (at[step] / _LITTLE) ** 4) for step, slope in given.items()}
    sign = -1 if higher_is_better else 1
    known = [sign * (value - baseline) for value in values if value is not None]
    worst = largest(baseline, known)
    losses = [worst if value is None else sign * (value - baseline) for value in values]
    corners = _levels(
        [at[cell] for cell in cells],
        [loss - straight[cell] for cell, loss in zip(cells, losses, strict=True)],
    )

    def value(step: Step) -> float:
        return baseline + sign * (straight[step] + _between(*corners, at[step]))

    return Sensitivity(
        metric=metric,
        higher_is_better=higher_is_better,
        baseline=baseline,
        ratios=near.ratios,
        curves={
            name: tuple(value((name, removed(ratio, channels))) for ratio in near.ratios)
            for name, channels in near.channels.items()
        },
        channels=near.channels,
    )


def _by_step(curves: Sensitivity) -> dict[Step, float]:
    """Return the values by group and number of channels removed."""
    return {
        (name, removed(ratio, curves.channels[name])): value
        for name, curve in curves.values.items()
        for ratio, value in zip(curves.ratios, curve, strict=True)
    }


def _levels(distances: Sequence[float], losses: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners of a line that rises everywhere and is nearest to these points.

    Points that isotonic regression gives one value are one corner, in their middle. Points that it
    finds no loss at are none: how small losses are is known from those that can be told from none.
    A corner there would make a quarter of all cuts equal, and lose the order that distance has. The
    line ends at the largest loss.
    """
    known = np.asarray(distances, dtype=float) > 0
    x, y = np.asarray(distances, dtype=float)[known], np.asarray(losses, dtype=float)[known]
    if not (y > 0).any():
        return np.empty(0), np.empty(0)
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    fitted = isotonic_regression(y).x
    if not (fitted > 0).any():  # losses that are outweighed by gains farther off
        return np.empty(0), np.empty(0)
    levels, block = np.unique(fitted[fitted > 0], return_inverse=True)
    middles = np.bincount(block, x[fitted > 0]) / np.bincount(block)
    if y.max() > levels[-1] and x[-1] > middles[-1]:
        return np.append(middles, x[-1]), np.append(levels, y.max())
    return middles, levels


def _between(distances: np.ndarray, losses: np.ndarray, distance: float) -> float:
    """Return the loss at a distance: a power of it from corner to corner, as both span decades.

    Before the first corner the power goes on, between proportional and quadratic, which the loss is
    in what moves outputs a little.
    """
    if distance <= 0 or not len(losses):
        return 0.0
    x, y = np.log(distances), np.log(losses)
    at = np.log(distance)
    if at < x[0]:
        power = np.clip((y[1] - y[0]) / (x[1] - x[0]), 1, 2) if len(x) > 1 else 1.0
        return float(np.exp(y[0] + power * (at - x[0])))
    return float(np.exp(np.interp(at, x, y)))
