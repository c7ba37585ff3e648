"""What was measured: the time of every region, and of the whole, of one network after the other."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from prunella.plan import Plan


@dataclass(frozen=True)
class Place:
    """A region before it is fitted.

    Attributes:
        op: Its main operator.
        widths: Indices of the widths that its tensors have.
        squared: Those that one of its tensors has twice.
    """

    op: str
    widths: tuple[int, ...]
    squared: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Sample:
    """One network, timed.

    Attributes:
        lengths: Of its widths.
        regions: Milliseconds of each region, by name.
        whole: Milliseconds of the network, run without a look inside.
        looks: How often it was timed.
    """

    lengths: np.ndarray
    regions: Mapping[str, float]
    whole: float
    looks: int = 1

    def quicker(self, other: "Sample") -> "Sample":
        """Take the smaller time of each region, and of the whole, of one network timed twice."""
        regions = {name: min(ms, other.regions[name]) for name, ms in self.regions.items()}
        looks = self.looks + other.looks
        return Sample(self.lengths, regions, min(self.whole, other.whole), looks)


class Bench(Protocol):
    """Where networks are timed: knows the regions, and times the network of a plan."""

    @property
    def places(self) -> Mapping[str, Place]:
        """The regions by name."""

    def time(self, plan: Plan | None) -> Sample:
        """Time the network of a plan, or the dense one."""


def to_head(places: Mapping[str, Place]) -> dict[str, Any]:
    """Write the regions as JSON."""
    return {"places": {name: asdict(place) for name, place in places.items()}}


def from_head(entry: Mapping[str, Any]) -> dict[str, Place]:
    """Read the regions from JSON."""
    return {
        name: Place(place["op"], tuple(place["widths"]), tuple(place["squared"]))
        for name, place in entry["places"].items()
    }


def to_entry(index: int, sample: Sample) -> dict[str, Any]:
    """Write a sample as JSON, under the number of its plan."""
    return {
        "plan": index,
        "lengths": sample.lengths.tolist(),
        "regions": dict(sample.regions),
        "whole": sample.whole,
        "looks": sample.looks,
    }


def read(entries: Iterable[Mapping[str, Any]], plans: int) -> dict[int, Sample]:
    """Read the samples of the first plans from JSON; of two of one plan the later one counts."""
    return {
        entry["plan"]: Sample(
            np.array(entry["lengths"]), entry["regions"], float(entry["whole"]), entry["looks"]
        )
        for entry in entries
        if entry["plan"] < plans
    }
