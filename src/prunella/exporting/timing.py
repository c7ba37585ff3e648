"""How long models take side by side in one runtime."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from prunella.costs.latency import SECONDS, Latency, Speedup, compare, speedup
from prunella.exporting.exporting import Exported
from prunella.exporting.targets import load
from prunella.runtimes import Runtime, prepare


@dataclass(frozen=True, slots=True)
class Timing:
    """Models timed in turns in one runtime, on one batch.

    Attributes:
        runtime: Where.
        latency: Of each, by name; the first is what the others are compared with.
    """

    runtime: Runtime
    latency: Mapping[str, Latency]

    def speedup(self, name: str) -> Speedup:
        """Compare one with the first."""
        first = next(iter(self.latency.values()))
        return speedup(first, self.latency[name])


def timed(
    models: Mapping[str, nn.Module | Exported],
    example_inputs: Tensor | tuple[Any, ...],
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    runtime: Runtime | str = "onnxruntime",
    seconds: float = SECONDS,
) -> Timing:
    """Time models and exported files in one runtime, on the same inputs.

    Args:
        models: By name, first what the others are compared with. Modules are exported on the way.
        example_inputs: One tensor or the positional arguments; its batch is the one that is timed.
        example_kwargs: Keyword arguments of the forward.
        runtime: Where; "torch" for files of torch-export.
        seconds: Time to spend on all together.

    Raises:
        ExportError: A model cannot be exported or compiled for the runtime.
        ConfigError: The runtime is not installed, or has no such device or dtype.
    """
    runtime = Runtime.of(runtime)
    with ExitStack() as stack:
        ready = {
            name: stack.enter_context(
                load(model.path, model.form, runtime)
                if isinstance(model, Exported)
                else prepare(model, example_inputs, example_kwargs, runtime)
            )
            for name, model in models.items()
        }
        return Timing(runtime, compare(ready, seconds=seconds))
