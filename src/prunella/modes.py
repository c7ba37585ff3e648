"""Borrow a model for a moment and hand it back in the mode it came in."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put `model` in evaluation mode; restore every module's own flag on leaving."""
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield model
    finally:
        for module, training in flags.items():
            module.training = training


def forget(model: nn.Module) -> None:
    """Empty what modules keep of earlier runs: tensors in other sizes, or of another precision."""
    for module in model.modules():
        for name, value in vars(module).items():
            if type(value) is dict and "cache" in name and not name.startswith("_"):
                value.clear()
