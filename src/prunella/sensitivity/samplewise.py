"""A metric as a mean over samples, sample by sample."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunella.errors import ConfigError
from prunella.model.modes import evaluating
from prunella.model.outputs import in_float32
from prunella.model.structure import device_of, free_bytes
from prunella.tasks import (
    NotFiniteError,
    Split,
    Task,
    batches,
    open_split,
    positional,
    to_device,
)

_SIZE = 64
"""Samples between two looks at whether a value is settled."""


@dataclass(frozen=True, eq=False)
class Samplewise:
    """Judges a model sample by sample; the metric is the mean.

    Attributes:
        batches: All of the data, in an order that was drawn: the first batches are a sample of all.
        values: Returns the metric of every sample of a batch, given a model, without gradients.
        bounds: What no sample's metric is below or above.
    """

    batches: Sequence[Any]
    values: Callable[[nn.Module, Any], Tensor]
    bounds: tuple[float, float] = (0.0, 1.0)

    def each(self, model: nn.Module) -> Iterator[np.ndarray]:
        """Yield the values of one batch after the other.

        Raises:
            ConfigError: A value is out of bounds.
            NotFiniteError: One is no finite number. (A TaskError.)
        """
        low, high = self.bounds
        for batch in self.batches:
            found = self.values(model, batch).double().cpu().numpy()
            if not np.isfinite(found).all():
                odd = found[~np.isfinite(found)][0]
                raise NotFiniteError(
                    f"a sample's metric is {odd}; it must be a finite number. Check the metric for "
                    "a division by zero, and the model's outputs for values that are not finite"
                )
            if not ((found >= low) & (found <= high)).all():
                worst = found[~((found >= low) & (found <= high))][0]
                raise ConfigError(
                    f"a sample's metric is {worst}, which is not within {self.bounds}: how sure a "
                    "mean is can be told only of numbers within bounds. Bound the metric, say so "
                    "(`Samplewise(bounds=...)`), or leave `confidence` out"
                )
            yield found

    def __call__(self, model: nn.Module) -> float:
        """Compute the metric on all of the data."""
        return float(np.concatenate(list(self.each(model))).mean())


def samplewise(
    model: nn.Module,
    task: Task,
    split: Split,
    *,
    device: torch.device | str | None = None,
    precision: Literal["no", "bf16"] = "no",
    seed: int = 0,
) -> Samplewise:
    """Read a split of a task into memory, in an order drawn anew, and judge it sample by sample.

    Args:
        model: The dense model, on which the metric is tried.
        task: Whose data and metric; the metric is called on one sample after the other.
        split: Which part of the data.
        device: Where to compute; where the model is, if None.
        precision: As in `tasks.evaluate`.
        seed: Of the order.

    Raises:
        ConfigError: The metric is no mean over samples, the batches do not consist of samples, or
            they do not fit into memory.
    """
    where = device_of(model) if device is None else torch.device(device)
    data = _reordered(list(batches(open_split(task, split), f"split `{split}`")), seed)
    compute, inputs = task.metric.compute, positional

    @torch.no_grad()
    def outputs_of(one: nn.Module, batch: Any) -> tuple[Any, Any]:
        moved = to_device(batch, where)
        with torch.autocast(where.type, torch.bfloat16, enabled=precision == "bf16"):
            outputs = one(*inputs(task, moved))
        return in_float32(outputs) if precision == "bf16" else outputs, moved

    def values(one: nn.Module, batch: Any) -> Tensor:
        return _apart(outputs_of(one, batch), compute)

    with evaluating(model.to(where)):
        pairs = [outputs_of(model, batch) for batch in data]
    try:
        mean = float(torch.cat([_apart(pair, compute) for pair in pairs]).mean())
    except Exception as cause:
        raise ConfigError(_no_mean(task, f"{type(cause).__name__}: {cause}")) from cause
    whole = float(compute(iter(pairs)))
    if not np.isclose(mean, whole, rtol=1e-5, atol=1e-9):
        raise ConfigError(_no_mean(task, f"the mean over samples is {mean}, the metric {whole}"))
    return Samplewise(data, values)


def _no_mean(task: Task, why: str) -> str:
    return (
        f"evaluations can stop early only where the metric is a mean over samples, and "
        f"`{task.metric.name}` of task `{task.name}` is not ({why}). Leave `confidence` unset"
    )


def _apart(pair: tuple[Any, Any], compute: Callable[[Any], float]) -> Tensor:
    """Compute the metric of every sample of a batch alone."""
    leaves = [leaf for leaf in pytree.tree_leaves(pair) if isinstance(leaf, Tensor)]
    count = len(leaves[0])
    return torch.tensor([float(compute(iter([_part(pair, i, count)]))) for i in range(count)])


def _part(value: Any, index: int, count: int) -> Any:
    """Take one sample of what has so many, as a batch."""
    return pytree.tree_map_only(
        Tensor, lambda t: t[index : index + 1] if t.dim() and len(t) == count else t, value
    )


def _reordered(data: list[Any], seed: int) -> list[Any]:
    """Put samples into an order that says nothing about them, in batches of one size."""
    flat = [pytree.tree_flatten(batch) for batch in data]
    columns = list(zip(*(leaves for leaves, _ in flat), strict=True))
    even = all(
        isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == len(leaves[0])
        for leaves, _ in flat
        for leaf in leaves
    )
    alike = all(structure == flat[0][1] for _, structure in flat) and all(
        leaf.shape[1:] == column[0].shape[1:] for column in columns for leaf in column if even
    )
    if not even or not alike:
        raise ConfigError(
            "evaluations can stop early only where samples come in any order, which takes batches "
            "of tensors with one sample a row, of one shape. Leave `confidence` unset"
        )
    size = sum(leaf.numel() * leaf.element_size() for column in columns for leaf in column)
    room = free_bytes(torch.device("cpu")) // 4
    if size > room:
        raise ConfigError(
            f"evaluations can stop early only where samples come in any order; these take {size:,} "
            f"bytes, and {room:,} may be used. Leave `confidence` unset, or use a `share`"
        )
    whole = [torch.cat(column) for column in columns]
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(whole[0])))
    mixed = [leaf[order].split(_SIZE) for leaf in whole]
    return [pytree.tree_unflatten(leaves, flat[0][1]) for leaves in zip(*mixed, strict=True)]
