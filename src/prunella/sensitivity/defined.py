"""Whether a metric is a number at all: a network that lost channels may be beyond it."""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunella.errors import PrunellaError
from prunella.model.outputs import finite
from prunella.tasks import NotFiniteError

log = logging.getLogger("prunella")


def finite_or_none(evaluate: Callable[[], float], model: nn.Module) -> float | None:
    """Evaluate a model that was cut; None where the metric is no finite number.

    It is none, either, where it divides by zero, or raises on outputs that are not finite; nor
    where the model itself raises, as by an assertion of the user's on values. Whatever else is
    raised (data that cannot be read, too little memory) says nothing about the cut.

    Args:
        evaluate: Computes the metric of the model.
        model: The model, to look at what it returns.
    """
    try:
        value = float(evaluate())
    except (NotFiniteError, ArithmeticError) as error:
        log.info("the metric is no finite number: %s: %s", type(error).__name__, error)
        return None
    except Exception as error:
        again = _watched(evaluate, model)
        if again.raised is not None:
            log.info("the model raises: %s: %s", *_named(again.raised))
            return None
        if isinstance(error, PrunellaError) or not again.overflows:
            raise
        log.info("the metric raised on outputs that are not finite: %s", error)
        return None
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class _Seen:
    """What was seen of a model while it was evaluated once more."""

    overflows: bool
    raised: Exception | None


def _watched(evaluate: Callable[[], float], model: nn.Module) -> _Seen:
    """Say whether the model returns what is not finite, or raises, when it is evaluated again."""
    calls: list[Tensor | None] = []

    def enter(module: nn.Module, args: Any) -> None:
        calls.append(None)

    def leave(module: nn.Module, args: Any, outputs: Any) -> None:
        calls[-1] = finite(outputs)

    hooks = model.register_forward_pre_hook(enter), model.register_forward_hook(leave)
    raised: Exception | None = None
    try:
        evaluate()
    except Exception as error:  # noqa: BLE001 - whatever the user's code says
        if calls and calls[-1] is None and not any(map(_of_the_machine, _causes(error))):
            raised = error
    finally:
        for hook in hooks:
            hook.remove()
    return _Seen(not all(known for known in calls if known is not None), raised)


def _of_the_machine(error: BaseException) -> bool:
    """Say whether an error is about memory, files or the device, and not about values."""
    kinds = (MemoryError, OSError, torch.OutOfMemoryError, torch.AcceleratorError)
    # Some are of no class of their own: the processor's, Apple's.
    words = ("can't allocate memory", "out of memory")
    return isinstance(error, kinds) or any(said in str(error) for said in words)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _named(error: Exception) -> tuple[str, str]:
    """Name the model's own error, which what judges it may have put into words of its own."""
    *_, first = _causes(error)
    return type(first).__name__, str(first)
