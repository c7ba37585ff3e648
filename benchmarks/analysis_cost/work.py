"""Counting work: evaluations of the dense model on all of the images."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from prunella.plan import Groups
from prunella.replaying import Course
from prunella.sensitivity import removed
from prunella.sensitivity.measuring import touched

_RECORDING = 3
"""Passes that sharing takes: the record, the proof, and coming to where groups begin."""

_GRADIENTS = 3
"""A pass forwards and one backwards, which is twice the work."""


@dataclass(frozen=True, eq=False)
class Work:
    """What each way to analyse takes, in multiply-accumulates of convolutions and linear layers.

    Args:
        groups: Of the network.
        ratios: Shares of channels removed.
        samples: How many images an evaluation has.
    """

    groups: Groups
    ratios: tuple[float, ...]
    samples: int

    @cached_property
    def behind(self) -> list[float]:
        """For every value in the order measured, the share of the network behind its group."""
        course = Course(self.groups.graph)
        values = self.groups.graph.values
        done = [0]
        for node in course.nodes:
            macs = 0
            if node.op.startswith(("aten.conv", "aten.linear", "aten.addmm")):
                weight = values[node.args[1].name].shape
                macs = prod(values[node.outputs[0]].shape) * prod(weight[1:])
            done.append(done[-1] + macs)
        found = sorted(self.groups, key=lambda group: course.first_use(touched(group)))
        return [
            1 - done[course.first_use(touched(group))] / done[-1]
            for group in found
            for _ in {removed(ratio, group.channels) for ratio in self.ratios} - {0}
        ]

    @property
    def cells(self) -> int:
        """Count the values that are measured, the dense model's aside."""
        return len(self.behind)

    @property
    def plain(self) -> float:
        """A full evaluation each."""
        return self.cells + 1

    @property
    def exact(self) -> float:
        """What is behind each group, and what sharing takes."""
        return sum(self.behind) + _RECORDING

    def estimate(self, count: int, probes: int, *, slopes: bool) -> float:
        """All values on a few samples; some cuts, and gradients or not, on all of the images."""
        return probes + 1 + count / self.samples * (self.exact + 1) + _GRADIENTS * slopes

    def one_pass(self, count: int, probes: int) -> float:
        """One pass of gradients, the dense model and some cuts on all of the images."""
        return probes + 1 + count / self.samples * _GRADIENTS

    def stopped(self, used: Sequence[int]) -> float:
        """What is behind each group, on as many samples as it took."""
        parts = (share * n / self.samples for share, n in zip(self.behind, used, strict=True))
        return sum(parts) + _RECORDING
