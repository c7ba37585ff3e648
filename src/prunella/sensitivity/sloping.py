"""Where the metric is a loss: what it rises by at first, when channels fade, on all its samples."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunella.calibration import Calibration, Loss
from prunella.errors import ConfigError
from prunella.model.examples import samples_in
from prunella.plan import Groups, Scores
from prunella.scoring import score
from prunella.scoring.criteria import Member, Need, gate_of
from prunella.sensitivity.sharing import Evaluate


def slopes_of(model: nn.Module, groups: Groups, labelled: Calibration) -> tuple[Scores, float]:
    """Return what a loss rises by for every channel that goes, to first order, and the loss.

    It is the derivative along a gate on whatever reads the channel, with its sign: below zero where
    these samples are better off without the channel. Where no weight reads it, as queries and keys,
    the gate is on all that makes it, shared out evenly among the factors of what is made.

    Args:
        model: The dense model; left as it is.
        groups: Its groups.
        labelled: The samples, with their loss. Batches count by their size.

    Raises:
        ConfigError: There is no loss, or nothing flows back from it.
    """
    loss, shares = partial(_scalar, _loss(labelled)), _shares(labelled)
    dense = [0.0] * len(shares)

    def weighted(outputs: Any, index: int) -> Tensor:
        value = loss(outputs, index)
        dense[index] = shares[index] * float(value.detach())
        # The criterion takes the mean over passes, of which every batch is one.
        return value * shares[index] * len(shares)

    slopes = score(model, groups, _Slope(), replace(labelled, loss=weighted))
    return slopes, sum(dense)


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
        if gate is None:
            return torch.zeros(len(members[0]))
        roles = [member.role for member in members]
        factors = 1 if "reads" in roles else max(roles.count("makes"), 1)
        return -gate.double().mean(0) / factors


def _loss(labelled: Calibration) -> Loss:
    if labelled.loss is None:
        raise ConfigError(
            "`labelled` are the samples the metric is of, with the loss that is the metric: "
            "Calibration(batches, loss), where loss(outputs, index) is the mean over that batch"
        )
    return labelled.loss


def _scalar(loss: Loss, outputs: Any, index: int) -> Tensor:
    value = loss(outputs, index)
    if not isinstance(value, Tensor) or value.numel() != 1:
        found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(
            f"the loss of `labelled` is of {found} on batch {index}; loss(outputs, index) returns "
            "a tensor with one number, the mean over that batch, as it is before `.item()`"
        )
    if not value.isfinite():
        raise ConfigError(
            f"the loss of `labelled` is no finite number on batch {index} of the dense model; "
            "check its labels, and what the model returns"
        )
    return value.reshape(())


def _shares(labelled: Calibration) -> list[float]:
    sizes = [samples_in(batch) for batch in labelled.batches]
    return [size / sum(sizes) for size in sizes]
