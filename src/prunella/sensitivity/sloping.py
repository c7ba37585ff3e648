"""Where the metric is a loss: what it rises by at first, when channels fade, on all its samples."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from prunella.calibration import Calibration, Loss
from prunella.errors import ConfigError
from prunella.model.examples import samples_in
from prunella.plan import Groups, Scores
from prunella.scoring import score
from prunella.scoring.criteria import Member, Need, gate_of
from prunella.sensitivity.sharing import Evaluate


def slopes_of(model: nn.Module, groups: Groups, labelled: Calibration) -> Scores:
    """Return what the loss of some samples rises by for every channel that goes, to first order.

    It is the derivative along a gate on whatever reads the channel, with its sign: below zero where
    these samples are better off without the channel.

    Args:
        model: The dense model; left as it is.
        groups: Its groups.
        labelled: The samples, with their loss. Batches count by their size.

    Raises:
        ConfigError: There is no loss, or nothing flows back from it.
    """
    loss, shares = _loss(labelled), _shares(labelled)
    mean = len(shares)  # the criterion takes the mean over passes, of which every batch is one
    weighted = replace(
        labelled, loss=lambda outputs, index: loss(outputs, index) * shares[index] * mean
    )
    return score(model, groups, _Slope(), weighted)


def loss_on(labelled: Calibration) -> Evaluate:
    """Return what computes the loss of a model on some samples, in its mean."""
    loss, shares = _loss(labelled), _shares(labelled)

    @torch.no_grad()
    def evaluate(model: nn.Module) -> float:
        return sum(
            share * float(loss(model(*args, **kwargs), index))
            for index, (share, (args, kwargs)) in enumerate(
                zip(shares, labelled.batches, strict=True)
            )
        )

    return evaluate


class _Slope:
    """Minus the mean over passes of dL/dg, where g multiplies the channel for all who read it.

    No criterion to prune by, and so not among `prunella.CRITERIA`: a trained model is near a
    minimum, where slopes are what these very samples happen to say.

    Source:
        LeCun et al. 1989, "Optimal Brain Damage", equation 1, its first term, along gates.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"gradients"})

    def __call__(self, members: Sequence[Member], /) -> Tensor:
        """Return the slopes, `[channels]`; 0 where no gradient was seen."""
        gate = gate_of(members)
        return torch.zeros(len(members[0])) if gate is None else -gate.double().mean(0)


def _loss(labelled: Calibration) -> Loss:
    if labelled.loss is None:
        raise ConfigError(
            "`labelled` are the samples the metric is of, with the loss that is the metric: "
            "Calibration(batches, loss), where loss(outputs, index) is the mean over that batch"
        )
    return labelled.loss


def _shares(labelled: Calibration) -> list[float]:
    sizes = [samples_in(batch) for batch in labelled.batches]
    return [size / sum(sizes) for size in sizes]
