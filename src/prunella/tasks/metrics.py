"""Metrics and losses of classification that tasks share."""

from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from prunella.tasks._protocol import Metric


def accuracy() -> Metric:
    """Measure the share of samples whose largest logit is the target's; 1.0 is perfect.

    Batches are `(input, target, ...)`, outputs logits `[samples, classes]`.
    """
    return Metric("accuracy", higher_is_better=True, compute=_accuracy)


def cross_entropy(outputs: Tensor, batch: Any) -> Tensor:
    """Compute the cross-entropy of logits and the targets of a batch `(input, target, ...)`."""
    return F.cross_entropy(outputs, batch[1])


def _accuracy(pairs: Iterable[tuple[Any, Any]]) -> float:
    right, count = 0, 0
    for outputs, batch in pairs:
        right += int((outputs.argmax(1) == batch[1]).sum())
        count += len(batch[1])
    return right / count
