"""The catalogue of importance criteria: one a file."""

from collections.abc import Mapping

from prunella.criteria._protocol import Criterion
from prunella.criteria.magnitude import Magnitude
from prunella.criteria.random import Random

CRITERIA: Mapping[str, Criterion] = {
    "magnitude": Magnitude(2),
    "magnitude-l1": Magnitude(1),
    "random": Random(0),
}

__all__ = ["CRITERIA", "Criterion", "Magnitude", "Random"]
