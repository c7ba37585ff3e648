"""A running average of a model's weights, which is often better than the last of them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from prunella.model.structure import tensors


class Average:
    """The average over steps of every parameter and buffer of a model.

    At step s, counted from 0, the share of the average kept is min(keep, (1 + s) / (10 + s)), so
    that the first weights do not dwell in it. Integer buffers are copied.

    Args:
        model: Whose tensors are followed.
        keep: Share of the average kept at each step, 0 < keep < 1.
    """

    def __init__(self, model: nn.Module, keep: float) -> None:
        self._model, self._keep = model, keep
        self.values = {name: value.detach().clone() for name, value in tensors(model).items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the model's tensors after a step."""
        share = 1 - min(self._keep, (1 + step) / (10 + step))
        for name, value in tensors(self._model).items():
            if value.is_floating_point() or value.is_complex():
                self.values[name].lerp_(value, share)
            else:
                self.values[name].copy_(value)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average into the model, and the model's own tensors back on leaving."""
        own = {name: value.detach().clone() for name, value in tensors(self._model).items()}
        put(self._model, self.values)
        try:
            yield
        finally:
            put(self._model, own)


@torch.no_grad()
def put(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy values into a model's parameters and buffers of the same names."""
    for name, value in tensors(model).items():
        value.copy_(values[name])
