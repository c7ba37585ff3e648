"""The catalogue of importance criteria: one a file."""

from collections.abc import Mapping

from prunella.scoring.criteria._protocol import Criterion, Member, Need, gate_of
from prunella.scoring.criteria.activation import Activation
from prunella.scoring.criteria.fisher import Fisher
from prunella.scoring.criteria.fpgm import Fpgm
from prunella.scoring.criteria.lamp import Lamp
from prunella.scoring.criteria.magnitude import Magnitude
from prunella.scoring.criteria.normscale import NormScale
from prunella.scoring.criteria.random import Random
from prunella.scoring.criteria.reading import Reading
from prunella.scoring.criteria.taylor import Taylor
from prunella.scoring.criteria.wanda import Wanda

CRITERIA: Mapping[str, Criterion] = {
    "reading": Reading(),
    "magnitude": Magnitude(2),
    "magnitude-l1": Magnitude(1),
    "norm-scale": NormScale(),
    "lamp": Lamp(),
    "fpgm": Fpgm(),
    "taylor": Taylor(),
    "fisher": Fisher(),
    "activation": Activation(),
    "wanda": Wanda(),
    "random": Random(0),
}
"""Every criterion by the name that `criterion=` takes; docs/concepts/criteria.md compares them."""

WITHOUT_DATA, WITH_DATA = "reading", "fisher"
"""What is taken where no criterion is named: measured, see docs/concepts/criteria.md."""

__all__ = [
    "CRITERIA",
    "WITHOUT_DATA",
    "WITH_DATA",
    "Activation",
    "Criterion",
    "Fisher",
    "Fpgm",
    "Lamp",
    "Magnitude",
    "Member",
    "Need",
    "NormScale",
    "Random",
    "Reading",
    "Taylor",
    "Wanda",
    "gate_of",
]
