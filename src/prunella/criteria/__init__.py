"""The catalogue of importance criteria: one a file."""

from collections.abc import Mapping

from prunella.criteria._protocol import Criterion, Member, Need
from prunella.criteria.fpgm import Fpgm
from prunella.criteria.lamp import Lamp
from prunella.criteria.magnitude import Magnitude
from prunella.criteria.normscale import NormScale
from prunella.criteria.random import Random
from prunella.criteria.reading import Reading

CRITERIA: Mapping[str, Criterion] = {
    "reading": Reading(),
    "magnitude": Magnitude(2),
    "magnitude-l1": Magnitude(1),
    "norm-scale": NormScale(),
    "lamp": Lamp(),
    "fpgm": Fpgm(),
    "random": Random(0),
}

__all__ = [
    "CRITERIA",
    "Criterion",
    "Fpgm",
    "Lamp",
    "Magnitude",
    "Member",
    "Need",
    "NormScale",
    "Random",
    "Reading",
]
