"""The time of a network as a function of its widths, as it was measured on one machine.

A network's time is the sum of its *regions'*: what a runtime runs as one kernel, or a few. That of
a region is a sum of products of stepped widths, times what each was measured to take. So time is
priced like other costs, and stands beside them where levels are chosen.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from prunella.costs.predicted import Term, evaluate
from prunella.costs.widths import Step, widths
from prunella.errors import PlanMismatchError
from prunella.plan import Groups

UNITS = 10**12
"""Of these make a millisecond: costs are integers, and a multiply-accumulate takes picoseconds."""


@dataclass(frozen=True)
class Part:
    """Milliseconds times a product of widths, each of them stepped as `steps` says."""

    ms: float
    widths: tuple[int, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Region:
    """What runs as one: its name, its main operator, and what its time is made of."""

    name: str
    op: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class LatencyModel:
    """The time of one network on one machine and runtime.

    Attributes:
        runtime: Where it was measured, as `Runtime` writes itself.
        digest: Of the network's structure and its widths.
        regions: What its time is the sum of.
        dense: Milliseconds that the dense network took, measured.
        plans: On how many plans it was measured.
        error: Median of |predicted / measured - 1| on plans that the fit has not seen.
        worst: Nine of ten such plans were nearer than this.
    """

    runtime: str
    digest: str
    regions: tuple[Region, ...]
    dense: float
    plans: int
    error: float
    worst: float

    def terms(self, groups: Groups) -> list[Term]:
        """Write the time as a cost, in `UNITS`.

        Raises:
            PlanMismatchError: The model is of another network, or of other groups of it.
        """
        found = widths(groups)
        if self.digest != digest_of(groups):
            raise PlanMismatchError(
                "the latency model was measured on another network, on inputs of other sizes, or "
                "with other modules excluded; profile this one"
            )
        return [
            Term(round(part.ms * UNITS), tuple(found[w].channels for w in part.widths), part.steps)
            for region in self.regions
            for part in region.parts
        ]

    def predict(self, groups: Groups, mask: np.ndarray) -> float:
        """Return the milliseconds that the network takes with the channels of a mask."""
        return evaluate(self.terms(groups), mask) / UNITS

    def scaled(self, factor: float) -> "LatencyModel":
        """Return the model with all times longer by a factor."""
        regions = tuple(
            replace(r, parts=tuple(replace(p, ms=p.ms * factor) for p in r.parts))
            for r in self.regions
        )
        return replace(self, regions=regions)

    def by_region(self, groups: Groups, mask: np.ndarray) -> Mapping[str, float]:
        """Return the milliseconds of every region with the channels of a mask."""
        terms = iter(self.terms(groups))
        return {
            region.name: evaluate([next(terms) for _ in region.parts], mask) / UNITS
            for region in self.regions
        }


def digest_of(groups: Groups) -> str:
    """Tell a network's operators, its example inputs and its widths from others."""
    graph = groups.graph
    hashed = hashlib.sha256(graph.digest.encode())
    made = [(node.op, node.outputs) for node in graph.nodes if not node.training]
    for op, names in (("input", graph.inputs), *made):
        tensors = [(graph.values[n].shape, str(graph.values[n].dtype)) for n in names]
        hashed.update(repr((op, tensors)).encode())
    for width in widths(groups):
        hashed.update(width.channels.tobytes())
    return hashed.hexdigest()
