"""How a batch goes through a captured network: as a whole, or in parts that fit into the cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from prunella.replaying import Course, Values, bind

Live = list[dict[str, Tensor]]
"""What is live at a position, part by part."""

_CACHE = 16 << 20
"""Bytes of activations at once beyond which memory is what takes the time: a batch of 250 goes
through ResNet-56 in five parts in three quarters of the time, through one core."""

_FEWEST = 16
"""Torch takes other kernels for smaller batches, so smaller parts would give other numbers."""


@dataclass(frozen=True, eq=False)
class Route:
    """A network for batches of one shape, captured on one part of such a batch.

    Attributes:
        course: What each part runs through.
        parts: How many of the same size there are.
    """

    course: Course
    parts: int = 1

    def begin(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Live:
        """Put a batch at the start."""
        if self.parts == 1:
            return [bind(self.course.graph, args, kwargs)]
        samples = self.parts * self.course.graph.samples
        cut = parted(args, kwargs, samples, self.course.graph.samples)
        return [bind(self.course.graph, *part) for part in cut]

    def size(self, position: int) -> int:
        """Count the bytes of what is live at a position."""
        return self.parts * self.course.size(position)

    def run(self, live: Live, start: int, stop: int, tensors: Values) -> Live:
        """Go from one position to another; see `Course.run`."""
        return [self.course.run(part, start, stop, tensors) for part in live]

    def finish(self, live: Live, start: int, tensors: Values) -> Any:
        """Go on to the end, and return what the model returns: memory of its own."""
        ends = self.run(live, start, self.course.end, tensors)
        if self.parts > 1:
            return self.course.returned(_joined(ends), tensors)
        kept = {tensor.untyped_storage().data_ptr() for tensor in live[0].values()}
        mine = {
            name: tensor.clone() if tensor.untyped_storage().data_ptr() in kept else tensor
            for name, tensor in ends[0].items()
        }
        return self.course.returned(mine, tensors)


def _joined(ends: Live) -> dict[str, Tensor]:
    return {name: torch.cat([end[name] for end in ends]) for name in ends[0]}


def parted(
    args: Sequence[Any], kwargs: Mapping[str, Any], samples: int, size: int
) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Cut a batch along the first dimension of its tensors, where that counts the samples."""

    def part(start: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        cut: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map_only(
            Tensor,
            lambda t: t[start : start + size] if t.dim() and len(t) == samples else t,
            (tuple(args), dict(kwargs)),
        )
        return cut

    return [part(start) for start in range(0, samples, size)]


def part_size(whole: Course) -> int:
    """Choose how many samples of a batch go through the network at once; all, or a divisor."""
    samples = whole.graph.samples
    sizes = [n for n in range(1, samples + 1) if samples % n == 0 and n >= min(_FEWEST, samples)]
    fitting = [n for n in sizes if n * whole.peak <= samples * _CACHE]
    return fitting[-1] if fitting else sizes[0]
