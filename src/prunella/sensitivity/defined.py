"""Whether a metric is a number at all: a network that lost channels may be beyond it."""

import logging
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from prunella.errors import PrunellaError
from prunella.model.outputs import finite
from prunella.tasks import NotFiniteError

log = logging.getLogger("prunella")


def finite_or_none(evaluate: Callable[[], float], model: nn.Module) -> float | None:
    """Evaluate a model that was cut; None where the metric is no finite number.

    It is none, either, where it divides by zero, or raises on outputs that are not finite. Whatever
    else is raised (data that cannot be read, too little memory) says nothing about the cut.

    Args:
        evaluate: Computes the metric of the model.
        model: The model, to look at what it returns.
    """
    try:
        value = float(evaluate())
    except (NotFiniteError, ArithmeticError) as error:
        log.info("the metric is no finite number: %s: %s", type(error).__name__, error)
        return None
    except PrunellaError:
        raise
    except Exception as error:
        if not _overflows(evaluate, model):
            raise
        log.info("the metric raised on outputs that are not finite: %s", error)
        return None
    return value if math.isfinite(value) else None


def _overflows(evaluate: Callable[[], float], model: nn.Module) -> bool:
    """Say whether the model returns what is not finite when it is evaluated once more."""
    seen: list[Tensor] = []

    def look(module: nn.Module, args: Any, outputs: Any) -> None:
        seen.append(finite(outputs))

    hook = model.register_forward_hook(look)
    try:
        with suppress(Exception):
            evaluate()
    finally:
        hook.remove()
    return not all(seen)
