"""What a model under test is: how to build it, what to feed it, how to judge it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Subject:
    """A pretrained model with its data.

    Args:
        name: As the table shows it.
        build: Returns the dense model in evaluation mode.
        example: Inputs for tracing and for counting MACs.
        test: Yields inputs and targets of the test split.
        score: Returns figures by name from pairs of outputs and targets; the first is the metric,
            in points of 100.
        unlabelled: Yields inputs for calibration, none of which the test uses.
        note: What the inputs for calibration are.
        heads: Returns the modules whose output channels Torch-Pruning must leave alone.
    """

    name: str
    build: Callable[[], nn.Module]
    example: Callable[[], Inputs]
    test: Callable[[], Iterator[tuple[Inputs, Any]]]
    score: Callable[[Iterable[tuple[Tensor, Any]]], dict[str, float]]
    unlabelled: Callable[[], Iterator[Inputs]]
    note: str
    heads: Callable[[nn.Module], list[nn.Module]]
    peer: Mapping[str, Callable[[nn.Module], dict[str, Any]]] = field(
        default_factory=lambda: {"": lambda _: {}}
    )


def judge(subject: Subject, model: nn.Module) -> dict[str, float]:
    """Measure the model on the test split."""
    model.eval()
    with torch.inference_mode():
        return subject.score((model(*inputs), target) for inputs, target in subject.test())
