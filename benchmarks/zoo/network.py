"""What a collection yields: a network, and how to draw what it is called with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a forward call."""

Draw = Callable[[int], Arguments]
"""Draws fresh random arguments of so many samples."""


@dataclass(frozen=True)
class Network:
    """One network of a collection.

    Attributes:
        model: The network, as its library builds it without weights.
        inputs: What it is called with.
        training: What it is called with in training mode, where that is something else (targets).
    """

    model: nn.Module
    inputs: Draw
    training: Draw | None = None


def tensors(*shapes: tuple[int, ...], **options: Any) -> Draw:
    """Return a draw of normal tensors, shapes without samples; `options` are passed on."""

    def draw(samples: int) -> Arguments:
        return tuple(torch.randn(samples, *shape) for shape in shapes), dict(options)

    return draw


def image(size: int) -> Draw:
    """Return a draw of square colour images."""
    return tensors((3, size, size))


def numbers(high: int, *shape: int, low: int = 0) -> Callable[[int], Tensor]:
    """Return a draw of integers in `[low, high)`, the end points among them."""

    def draw(samples: int) -> Tensor:
        drawn = torch.randint(low, high, (samples, *shape))
        drawn.view(-1)[0], drawn.view(-1)[-1] = low, high - 1
        return drawn

    return draw
