"""Calls of a model, as they were when it was dense: what it was given, and what it returned."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from prunella.model.containers import emptied
from prunella.model.outputs import tensors_in
from prunella.replaying import kind_of
from prunella.sensitivity.route import Live, Route


@dataclass(frozen=True, slots=True)
class Casting:
    """The autocast that a call of the model was under."""

    device: str
    enabled: bool
    dtype: torch.dtype

    @staticmethod
    def now(device: str) -> "Casting":
        """Return the one there is now."""
        enabled = torch.is_autocast_enabled(device)
        return Casting(device, enabled, torch.get_autocast_dtype(device))

    def entered(self) -> AbstractContextManager[Any]:
        """Compute under it again."""
        return torch.autocast(self.device, dtype=self.dtype, enabled=self.enabled)


@dataclass(frozen=True, slots=True)
class Returned:
    """What a model returned: its containers, and copies of the tensors in them."""

    shell: Any
    tensors: tuple[Tensor, ...]

    @staticmethod
    def of(returned: Any) -> "Returned":
        """Copy what a model returned."""
        shell = emptied(returned, map(str, count()))
        return Returned(shell, tuple(map(_copy, tensors_in(returned))))

    def equals(self, returned: Any) -> bool:
        """Say whether something else is the same, bit for bit and container for container."""
        shell = emptied(returned, map(str, count()))
        found = tuple(tensors_in(returned))
        return (
            bool(shell == self.shell)
            and len(found) == len(self.tensors)
            and all(map(_equal, found, self.tensors))
        )

    @property
    def bytes(self) -> int:
        """Count the bytes of the tensors."""
        return bytes_of(self.tensors)


@dataclass(eq=False, slots=True)
class Batch:
    """One call of the model in an evaluation: the second batch is the second call.

    Attributes:
        args: A copy of the arguments.
        kwargs: A copy of the keyword arguments.
        strides: The strides of the tensors among them, which decide between kernels.
        casting: The autocast it was under.
        returned: What the model returned; dropped once the route is proven.
        route: The way through the model's graph for such inputs; None where there is none.
        position: How far the values in `live` are.
        live: What is live there; None where it is not kept.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    strides: list[tuple[int, ...]]
    casting: Casting
    returned: Returned | None = None
    route: Route | None = None
    position: int = 0
    live: Live | None = None

    @staticmethod
    def of(args: tuple[Any, ...], kwargs: dict[str, Any], device: str) -> "Batch":
        """Copy what the model is given."""
        # Not as tensors of inference mode, which cannot be traced with.
        with torch.inference_mode(mode=False):
            kept = pytree.tree_map_only(Tensor, _copy, (args, kwargs))
        return Batch(kept[0], kept[1], _strides((args, kwargs)), Casting.now(device))

    def kind(self) -> str:
        """Tell batches apart that need a capture of their own."""
        return kind_of(self.args, self.kwargs)

    def same(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Say whether the model is given what was recorded, bit for bit."""
        leaves, structure = pytree.tree_flatten((args, kwargs))
        known, shape = pytree.tree_flatten((self.args, self.kwargs))
        return (
            structure == shape
            and _strides((args, kwargs)) == self.strides
            and all(map(_equal, leaves, known))
        )

    @property
    def bytes(self) -> int:
        """Count the bytes of what the model was given."""
        return bytes_of((self.args, self.kwargs))


def bytes_of(value: Any) -> int:
    """Count the bytes of the tensors in containers."""
    found = pytree.tree_leaves(value)
    return sum(t.numel() * t.element_size() for t in found if isinstance(t, Tensor))


def _strides(given: Any) -> list[tuple[int, ...]]:
    return [leaf.stride() for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor)]


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _equal(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other) and bool(one == other)
    if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
        return False
    return torch.equal(_bits(one), _bits(other))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)
