"""Let one model follow the decisions of another, so that rounding cannot make them part.

A detector sorts and compares numbers. Two models that compute the same up to rounding may break a
tie differently, and then differ in everything after it. So what the first model decides (integers
or truth values computed from real numbers) is noted, and the second follows as long as the numbers
it would decide by are the same up to a tolerance.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True, eq=False)
class _Decision:
    operator: Any
    grounds: tuple[Tensor, ...]
    outcome: Any


@dataclass
class Decisions:
    """What was decided, in order; `gap` is how far apart the grounds of the follower were."""

    made: list[_Decision] = field(default_factory=list)
    gap: float = 0.0


class Deciding(TorchDispatchMode):
    """Notes what is decided meanwhile."""

    def __init__(self, decisions: Decisions) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._decisions = decisions

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and note what it decides."""
        outcome = func(*args, **(kwargs or {}))
        grounds = _grounds(func, args, kwargs, outcome)
        if grounds:
            kept = tuple(tensor.detach().clone() for tensor in grounds)
            self._decisions.made.append(_Decision(func, kept, pytree.tree_map(_copied, outcome)))
        return outcome


class Following(TorchDispatchMode):
    """Decides as was decided before, wherever that is on the same grounds.

    It ends with the first operator that decides and is another than before.
    """

    def __init__(self, decisions: Decisions, tolerance: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._decisions, self._tolerance = decisions, tolerance
        self._next = iter(decisions.made)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator; replace what it decides by what was decided before."""
        outcome = func(*args, **(kwargs or {}))
        grounds = _grounds(func, args, kwargs, outcome)
        if not grounds:
            return outcome
        before = next(self._next, None)
        if before is None or before.operator is not func:
            self._next = iter(())
            return outcome
        if _shapes(before.grounds) != _shapes(grounds) or _shapes(before.outcome) != _shapes(
            outcome
        ):
            return outcome  # channels were cut: each decides for its own
        gap = max(_apart(a, b) for a, b in zip(before.grounds, grounds, strict=True))
        if gap > self._tolerance:
            return outcome
        self._decisions.gap = max(self._decisions.gap, gap)
        return pytree.tree_map(_copied, before.outcome)


def _grounds(func: Any, args: Any, kwargs: Any, outcome: Any) -> tuple[Tensor, ...]:
    """Return the real numbers something was decided by; nothing if nothing was decided."""
    if func._schema.is_mutable or not any(_is_exact(leaf) for leaf in pytree.tree_leaves(outcome)):
        return ()
    return tuple(
        leaf
        for leaf in pytree.tree_leaves((args, kwargs))
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    )


def _is_exact(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and not leaf.is_floating_point() and not leaf.is_complex()


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _shapes(value: Any) -> list[torch.Size]:
    return [leaf.shape for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _apart(a: Tensor, b: Tensor) -> float:
    """Return the largest difference relative to the largest number."""
    if not a.numel():
        return 0.0
    same = (a == b) | (a.isnan() & b.isnan())
    gap = torch.where(same, 0.0, a - b).abs().nan_to_num(nan=float("inf")).max().item()
    return gap / max(
        a[a.isfinite()].abs().max().item() if bool(a.isfinite().any()) else 0.0, 1e-300
    )
