"""What every group of channels is worth, from unlabelled data alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn

from prunella.calibration import Calibration, thinned
from prunella.costs.predicted import predict
from prunella.plan import Groups
from prunella.progress import Progress, or_silent
from prunella.repairing.divergence import divergence_from, softened
from prunella.repairing.reconstructing import Reconstruction
from prunella.sensitivity import Sensitivity, analyze, removed

RATIOS = (0.25, 0.5, 0.75)

_WORK = 5e12
"""Multiply-accumulates to spend on measuring, minutes of a processor, within these bounds:"""

_FEWEST, _MOST = 64, 512

_STEEPEST = 2.5
"""With which power of the error damage grows, at most, where nothing was measured any more."""


@dataclass(frozen=True, eq=False)
class Worth:
    """The damage of removing so many channels of a group and refitting what reads them.

    Attributes:
        reconstruction: In which order channels can go, and what error that leaves.
        sensitivity: How far outputs move at a few ratios, measured.
    """

    reconstruction: Reconstruction
    sensitivity: Sensitivity

    def damage(self, group: str, kept_channels: int) -> float:
        """Predict how far outputs move when a group keeps so many of its channels.

        Between the measured ratios it goes as a power of the reconstruction error, which is known
        for every number of channels: outputs that move little move by the square of what is wrong
        inside, as the error is, so the power is near 1. Straight lines would have a kink at every
        ratio measured, and the cheapest plan of them all would lie on kinks.
        """
        measured, errors = self.sensitivity, self.reconstruction.errors.get(group)
        plain = measured.damage(group, kept_channels)
        if errors is None:
            return plain
        channels = measured.channels[group]
        counts = sorted({removed(ratio, channels) for ratio in measured.ratios})
        at = np.maximum.accumulate(errors)
        losses = {count: measured.damage(group, channels - count) for count in counts}
        harmful = [count for count in counts if losses[count] > 0]
        if any(at[count] <= 0 for count in harmful):
            return plain  # what does the damage is not what is refitted
        points = {float(at[count]): losses[count] for count in harmful}
        return _powers(float(at[channels - kept_channels]), points)


def _powers(error: float, points: Mapping[float, float]) -> float:
    """Join points by powers: proportional up to the first, by the last power beyond the last.

    Args:
        error: Where.
        points: Losses by errors, all > 0, ascending.
    """
    if error <= 0 or not points:
        return 0.0
    x, y = np.log(list(points)), np.log(list(points.values()))
    at = math.log(error)
    if at <= x[0]:
        return math.exp(y[0] + at - x[0])
    if at <= x[-1]:
        return math.exp(float(np.interp(at, x, y)))
    power = (y[-1] - y[-2]) / (x[-1] - x[-2]) if len(x) > 1 else 1.0
    return math.exp(y[-1] + min(max(power, 1.0), _STEEPEST) * (at - x[-1]))


def value(
    model: nn.Module,
    groups: Groups,
    found: Reconstruction,
    data: Calibration,
    *,
    ratios: tuple[float, ...] = RATIOS,
    progress: Progress | None = None,
) -> Worth:
    """Measure what groups are worth: outputs with each alone cut, and what reads it refitted.

    Args:
        model: The dense model.
        groups: Its groups.
        found: In which order channels can go.
        data: Batches of inputs; of more than a few hundred samples, some batches are judged on.
        ratios: Where the damage of every group is measured.
        progress: See `prunella.progress`.
    """
    whole = predict(groups, np.ones(groups.channels, dtype=bool)).macs
    samples = _WORK / max(whole * len(groups) * len(ratios), 1)
    few = thinned(data, int(min(max(samples, _FEWEST), _MOST)))
    judge = divergence_from(model, few, softened)
    with or_silent(progress)("measure", len(groups) * len(ratios) + 1) as advance:
        sensitivity = analyze(
            model,
            groups,
            found.scores,
            judge,
            metric="divergence from the dense model",
            higher_is_better=False,
            ratios=ratios,
            cut=found.cut,
            progress=lambda done, total: advance(1),
        )
    return Worth(found, sensitivity)
