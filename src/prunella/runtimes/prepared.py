"""A network that is ready to run in a runtime, on fixed inputs or on others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from prunella.runtimes.runtime import Runtime

Array = NDArray[Any]


def _nothing() -> None:
    pass


@dataclass(frozen=True, eq=False)
class Prepared:
    """A network exported, compiled and loaded, with example inputs in place.

    A context manager: on leaving, what it holds (a session, a file) is let go.

    Attributes:
        runtime: Where it runs.
        run: Runs once on the example inputs, and returns its outputs as the runtime gives them,
            when the device has finished. This is what a stopwatch times.
        on: Runs once on other inputs: arrays in the order of the example's tensors. In float16 and
            bfloat16 they are converted, and so are the outputs, to float32.
        close: Lets go of what it holds; to call it twice does no harm.
    """

    runtime: Runtime
    run: Callable[[], Any]
    on: Callable[[Sequence[Array]], list[Array]]
    close: Callable[[], None] = field(default=_nothing)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def widened(array: Array) -> Array:
    """Give half-precision numbers as float32, others as they are."""
    return array.astype(np.float32) if array.dtype == np.float16 else array
