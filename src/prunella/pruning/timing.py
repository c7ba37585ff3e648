"""Budgets on time within `prune`: a latency model, and a plan that keeps to it on the watch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from prunella.allocating import Allocation
from prunella.errors import ConfigError
from prunella.latency import LatencyModel, profile
from prunella.latency.meeting import Met, meet
from prunella.plan import Budget, Groups
from prunella.progress import Progress
from prunella.runtimes import Runtime


@dataclass(frozen=True)
class Clock:
    """Where time is measured, and the latency model where there is one already."""

    runtime: Runtime
    known: LatencyModel | None
    progress: Progress | None

    def plan(
        self,
        model: nn.Module,
        groups: Groups,
        inputs: tuple[tuple[Any, ...], dict[str, Any]],
        budget: Budget,
        allocate: Callable[..., Allocation],
    ) -> tuple[Allocation, Met]:
        """Make the plan that keeps a budget on time.

        Args:
            model: The dense model.
            groups: Its groups.
            inputs: Arguments and keyword arguments that are timed.
            budget: With a latency.
            allocate: Makes the plan, given a budget and `latency_model`.
        """
        known = self.known or profile(
            model,
            inputs[0],
            groups,
            self.runtime,
            example_kwargs=inputs[1],
            progress=self.progress,
        )
        return meet(
            model,
            groups,
            inputs,
            budget,
            known,
            lambda budget: allocate(target=budget, latency_model=known),
        )


def clock_for(
    latency: float | str | None,
    runtime: Runtime | str | None,
    known: LatencyModel | None,
    candidates: int,
    progress: Progress | None,
) -> Clock | None:
    """Check what `prune` is told about time; None where no budget is on it.

    Raises:
        ConfigError: The runtime is not named, or does not go with the rest.
    """
    if latency is None:
        for name, value in (("runtime", runtime), ("latency_model", known)):
            if value is not None:
                raise ConfigError(
                    f"`{name}` is for a budget on latency, and there is none: give one, e.g. "
                    f"`latency=0.5`, or leave out `{name}`"
                )
        return None
    if runtime is None and known is None:
        raise ConfigError(
            "a budget on latency is one on a runtime: name it with `runtime`, e.g. "
            "'onnxruntime:threads=1' or 'torch'"
        )
    if candidates > 1:
        raise ConfigError(
            "`candidates` are tried within budgets that can be predicted exactly; with `latency` "
            "one plan is made and timed. Leave out one of the two"
        )
    where = Runtime.of(known.runtime if runtime is None and known else str(runtime))
    if known is not None and str(where) != known.runtime:
        raise ConfigError(
            f"the latency model is of {known.runtime}, not of {where}: leave out one of the two"
        )
    return Clock(where, known, progress)
