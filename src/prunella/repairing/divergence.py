"""How far a model's outputs are from the dense model's: what can be judged without labels."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunella.calibration import Calibration
from prunella.distilling import distillation, logits_of
from prunella.errors import TaskError
from prunella.model.modes import evaluating
from prunella.model.outputs import tensors_in
from prunella.plan import check_kind

TEMPERATURE = 4.0
"""By which logits are divided where a network's own certainty must not hide what changed."""

_CLASSES = (2, 4)  # dimensions of class scores: [samples, classes], [samples, classes, y, x]


def divergence(outputs: Any, dense: Any, temperature: float = 1.0) -> Tensor:
    """Compute how far outputs are from the dense model's on the same batch, >= 0.

    A lone tensor (or one called `logits`) of 2 or 4 dimensions is taken as class scores: the
    Kullback-Leibler divergence of the classes' probabilities. Where it is none, an embedding, say,
    that is still a squared distance as long as values are small. Of all other outputs, the squared
    distance of every tensor as a share of the dense one's variance, averaged over tensors.

    Args:
        outputs: Of a model.
        dense: Of the dense model.
        temperature: Of the probabilities, see `prunella.distilling.distillation`.
    """
    scores, wanted = _scores(outputs), _scores(dense)
    if scores is not None and wanted is not None:
        return distillation(scores, wanted, temperature)
    parts = [
        (one.float() - other.float()).square().mean() / other.float().var().clamp_min(1e-12)
        for one, other in zip(tensors_in(outputs), tensors_in(dense), strict=True)
        if other.is_floating_point() and other.numel() > 1
    ]
    if not parts:
        raise TaskError(
            "the model returns no tensor of floating-point numbers, so nothing says how far a "
            "pruned model is from it; give `damage` or a task with a metric"
        )
    return torch.stack(parts).mean()


def softened(outputs: Any, dense: Any) -> Tensor:
    """Compute the divergence at a temperature of 4, at which finetuning will have to mend it.

    A network is so sure of what it was trained on that half of a layer can go before a probability
    moves by a thousandth, and little more flips a few samples at once. The improbable classes tell
    what is damaged long before.
    """
    return divergence(outputs, dense, TEMPERATURE)


def distance(outputs: Any, dense: Any) -> Tensor:
    """Compute how far outputs are from the dense model's, sample by sample, in the mean, >= 0.

    Of class scores, the root of each sample's divergence: the few samples that are far off count
    for less than in `divergence`, so that few samples say in which order many would see two models.
    Of all other outputs, the divergence.
    """
    there, here = _scores(dense), _scores(outputs)
    if there is None or here is None:
        return divergence(outputs, dense)
    known, found = (scores.float().log_softmax(1) for scores in (there, here))
    return (known.exp() * (known - found)).sum(1).clamp_min(0).sqrt().mean()


def _scores(outputs: Any) -> Tensor | None:
    if not isinstance(outputs, Tensor) and len(list(tensors_in(outputs))) > 1:
        try:
            outputs = logits_of(outputs)
        except TaskError:
            return None
    found = outputs if isinstance(outputs, Tensor) else next(tensors_in(outputs), None)
    if found is None or found.dim() not in _CLASSES or found.shape[1] == 1:
        return None
    return found


def divergence_from(
    model: nn.Module, data: Calibration, measure: Callable[[Any, Any], Tensor] = divergence
) -> Callable[[nn.Module], float]:
    """Return what judges models by how far they are from this one, now, on these batches.

    The result is a mean over batches, 0 for the model itself.

    Args:
        model: The dense model.
        data: Batches of inputs.
        measure: Of outputs and the dense model's on the same batch: `divergence`, `softened` or
            `distance`.
    """
    check_kind(data, Calibration)
    with evaluating(model), torch.no_grad():
        dense = [model(*args, **kwargs) for args, kwargs in data.batches]

    def judge(other: nn.Module) -> float:
        with torch.no_grad():
            return _mean(
                [
                    measure(other(*args, **kwargs), there)
                    for (args, kwargs), there in zip(data.batches, dense, strict=True)
                ]
            )

    return judge


def _mean(values: Sequence[Tensor]) -> float:
    found = torch.stack(list(values)).double().mean()
    largest = torch.finfo(torch.float32).max
    return float(found.nan_to_num(largest, posinf=largest))
