"""Calibration data: a few batches of what the model will see, without need of labels."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset, IterableDataset

from prunella.errors import ConfigError
from prunella.model.examples import Arguments, samples_in
from prunella.model.structure import hashed
from prunella.plan import check_kind

Loss = Callable[[Any, int], Tensor]
"""A scalar of the model's outputs on the batch of that index."""

_SAMPLES, _BYTES = 2048, 2**30

log = logging.getLogger("prunella")


@dataclass(frozen=True, eq=False)
class Calibration:
    """Batches of inputs that are like those the model is for.

    Attributes:
        batches: Arguments and keyword arguments of one call of the model each.
        loss: What training minimises, where labels are at hand, a mean over the batch. None: all
            that is judged is how far outputs are from the dense model's.
    """

    batches: Sequence[Arguments]
    loss: Loss | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.batches, Sequence):
            if not hasattr(type(self.batches), "__iter__"):
                raise ConfigError(
                    "the batches of a `Calibration` are a list of arguments and keyword arguments "
                    f"of one call each, [((images,), {{}}), ...], got {type(self.batches).__name__}"
                )
            object.__setattr__(self, "batches", list(self.batches))  # read more than once
        if not len(self.batches):
            raise ConfigError("the calibration data hold no batch; a few hundred samples will do")


Data = Calibration | Iterable[Any]


def calibration(data: Data, inputs: int = 1, device: torch.device | str = "cpu") -> Calibration:
    """Read calibration data from what users have: a tensor, a list of batches, a data loader.

    Args:
        data: Batches. Each is a tensor, a tuple or list of positional inputs, or a mapping of
            keyword arguments. What a tuple or list holds beyond the model's inputs (a loader's
            targets) is left out. A lone tensor is one batch. Lists are used whole; of what makes
            its batches while it is read, a data loader, the first that hold 2,048 samples or a
            gigabyte, with a warning: shuffle it, lest they are all of one kind.
        inputs: How many positional inputs the model takes.
        device: Where the model is.

    Raises:
        ConfigError: There is no batch, or one is of another type, empty, or holds NaN.
    """
    if isinstance(data, Calibration):
        _check(data.batches)
        if any(_made_in_inference(batch) for batch in data.batches):
            return replace(data, batches=[_differentiable(batch) for batch in data.batches])
        return data
    several = any(hasattr(type(data), name) for name in ("__iter__", "__getitem__"))
    if isinstance(data, str | bytes | Mapping) or not several:
        raise ConfigError(
            "calibration data are batches, in a list or a data loader, or a lone tensor, got "
            f"{type(data).__name__}"
        )
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise ConfigError(
            f"a data set ({type(data).__name__}) gives single samples, and calibration data are "
            "batches: write `DataLoader(dataset, batch_size=64, shuffle=True)`, or, of one whose "
            "items are batches, `list(dataset)`"
        )
    given = [data] if isinstance(data, Tensor) else data
    read = (_arguments(batch, inputs, device) for batch in given)
    batches = list(read) if isinstance(given, Sequence) else _enough(read)
    _check(batches)
    return Calibration(batches)


def _enough(batches: Iterable[Arguments]) -> list[Arguments]:
    """Take the first batches: a loader may hold more than memory does, or have no end."""
    found: list[Arguments] = []
    samples = size = 0
    for batch in batches:
        if samples >= _SAMPLES or size >= _BYTES:
            log.warning(
                "of the calibration data the first %d samples (%.0f MB) are used: they come from "
                "what makes its batches while it is read, and has more. That is enough if it is "
                "shuffled; a list of batches is used whole",
                samples,
                size / 1e6,
            )
            break
        found.append(batch)
        samples += samples_in(batch)
        size += sum(leaf.nbytes for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor))
    return found


def _check(batches: Sequence[Arguments]) -> None:
    for number, batch in enumerate(batches):
        for leaf in pytree.tree_leaves(batch):
            if not isinstance(leaf, Tensor):
                continue
            if leaf.numel() == 0:
                raise ConfigError(
                    f"batch {number} of the calibration data is empty, of shape "
                    f"{tuple(leaf.shape)}; leave it out"
                )
            if leaf.is_floating_point() and bool(leaf.isnan().any()):  # masks may be infinite
                raise ConfigError(
                    f"batch {number} of the calibration data holds what is not a number (NaN); "
                    "leave out such samples, or look at how they are normalised"
                )


def thinned(data: Calibration, samples: int) -> Calibration:
    """Return some of the batches, evenly spread, so that about so many samples remain.

    A sample is a row of the largest tensor of a batch.
    """
    check_kind(data, Calibration)
    sizes = [samples_in(batch) for batch in data.batches]
    step = max(sum(sizes) // samples, 1)
    loss = data.loss
    return Calibration(
        data.batches[::step],
        None if loss is None else lambda outputs, index: loss(outputs, index * step),
    )


def fingerprint(data: Calibration) -> str:
    """Hash the tensors of all batches."""
    leaves = pytree.tree_leaves(list(data.batches))
    return hashed({str(i): leaf for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)})[:16]


def _arguments(batch: Any, inputs: int, device: torch.device | str) -> Arguments:
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(batch, Tensor):
        args = (batch,)
    elif isinstance(batch, Mapping):
        kwargs = dict(batch)
    elif isinstance(batch, tuple | list):
        args = tuple(batch[: max(inputs, 1)])
    else:
        raise ConfigError(
            "a batch of calibration data is a tensor, a tuple or list of inputs or a mapping of "
            f"keyword arguments, got a {type(batch).__name__}"
            f"{': write `torch.from_numpy(x)`' if isinstance(batch, np.ndarray) else ''}"
        )
    moved: Arguments = pytree.tree_map_only(Tensor, lambda t: t.to(device), (args, kwargs))
    return _differentiable(moved)


def _made_in_inference(batch: Arguments) -> bool:
    return any(isinstance(t, Tensor) and t.is_inference() for t in pytree.tree_leaves(batch))


def _differentiable(batch: Arguments) -> Arguments:
    """Copy tensors made under `torch.inference_mode`, of which no gradient could be computed."""
    with torch.inference_mode(mode=False):
        ready: Arguments = pytree.tree_map_only(
            Tensor, lambda t: t.clone() if t.is_inference() else t, batch
        )
    return ready
