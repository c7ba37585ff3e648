"""What every group of channels is worth, from unlabelled data alone."""

from dataclasses import dataclass

import numpy as np
from torch import nn

from prunella.calibration import Calibration, thinned
from prunella.costs.predicted import predict
from prunella.plan import Groups
from prunella.progress import Progress, or_silent
from prunella.repairing.divergence import divergence_from
from prunella.repairing.reconstructing import Reconstruction
from prunella.sensitivity import Sensitivity, analyze, removed

RATIOS = (0.25, 0.5, 0.75)

_WORK = 5e12
"""Multiply-accumulates to spend on measuring, minutes of a processor, within these bounds:"""

_FEWEST, _MOST = 64, 512


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

        Between the measured ratios it goes as the reconstruction error does, which is known for
        every number of channels.
        """
        errors = self.reconstruction.errors.get(group)
        measured = self.sensitivity
        if errors is None:
            return measured.damage(group, kept_channels)
        channels = measured.channels[group]
        counts = sorted({0, *(removed(ratio, channels) for ratio in measured.ratios)})
        losses = [measured.damage(group, channels - count) for count in counts]
        at = np.maximum.accumulate(errors)
        error = at[channels - kept_channels]
        if error <= at[counts[-1]]:
            return float(np.interp(error, at[counts], losses))
        return float(losses[-1] + (error - at[counts[-1]]) * _slope(at[counts], losses))


def _slope(errors: np.ndarray, losses: list[float]) -> float:
    """Return how much is lost for an error beyond the last measured."""
    whole = losses[-1] / max(float(errors[-1]), 1e-12)
    if len(losses) == 1:
        return whole
    last = (losses[-1] - losses[-2]) / max(float(errors[-1] - errors[-2]), 1e-12)
    return max(whole, last)


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
    judge = divergence_from(model, thinned(data, int(min(max(samples, _FEWEST), _MOST))))
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
