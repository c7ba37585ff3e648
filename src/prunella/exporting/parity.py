"""Whether an exported file computes what the model does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Answer = Callable[[Sequence[Array]], list[Array]]

TOLERANCE = 1e-4
"""The largest difference that passes, as a share of the output's largest value.

Kernels of two runtimes round in different orders: ResNet-18 differs by 2e-6. The tanh form of GELU
in place of the exact one would be 5e-4.
"""

ROUNDING = 10.0
"""Where a network itself amplifies rounding, so many times the model's own error passes: what it
computes in float32 against float64."""

LIMIT = 1e-2
"""No difference above this share passes, whatever the model's own error is."""


@dataclass(frozen=True, slots=True)
class Parity:
    """One comparison of an exported file with the model it was made of.

    Attributes:
        inputs: "random" or "real".
        batch: How many samples.
        output: The output that differs most.
        error: Its largest difference, as a share of its largest value; of whole numbers, the share
            that differs.
        tolerance: What would have passed.
    """

    inputs: str
    batch: int
    output: str
    error: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the file computes what the model does."""
        return self.error <= self.tolerance

    def __str__(self) -> str:
        """Write it as messages do: `1.2e-06 on random inputs, batch 3 (tolerance 1e-04)`."""
        return (
            f"{self.error:.2g} on {self.inputs} inputs, batch {self.batch} "
            f"(tolerance {self.tolerance:.0e})"
        )


def worst(reference: Sequence[Array], found: Sequence[Array]) -> tuple[int, float]:
    """Find the output that differs most: its index, and the difference."""
    errors = [difference(one, other) for one, other in zip(reference, found, strict=True)]
    index = int(np.argmax(errors))
    return index, errors[index]


def difference(reference: Array, found: Array) -> float:
    """Compute how far an output is from what it should be, as a share of the largest value.

    Numbers that are not finite must be the same ones; a shape of its own is infinitely far.
    """
    if reference.shape != found.shape:
        return float("inf")
    if reference.size == 0:
        return 0.0
    if not np.issubdtype(reference.dtype, np.floating):
        return float(np.mean(reference != found))
    one, other = reference.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(one)
    if not np.array_equal(finite, np.isfinite(other)) or not np.array_equal(
        one[~finite], other[~finite], equal_nan=True
    ):
        return float("inf")
    if not finite.any():
        return 0.0
    largest = float(np.abs(one[finite]).max()) or 1.0
    return float(np.abs(one[finite] - other[finite]).max()) / largest


def allowed(reference: Sequence[Array], exact: Sequence[Array] | None) -> float:
    """Say what difference passes, given what the model computes in float64, if it can."""
    if exact is None:
        return TOLERANCE
    return float(min(max(TOLERANCE, ROUNDING * worst(exact, reference)[1]), LIMIT))
