"""From samples to a latency model: nonnegative least squares, region by region.

A region's time is a sum of products of one or two stepped widths, none of which may count less than
nothing. That alone keeps a fit with more products than samples from making things up, since no
product can be taken back by another.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from prunella.costs.timed import Part, Region
from prunella.costs.widths import PLAIN, Step, Width
from prunella.latency.measured import Place, Sample

STEPS = (
    PLAIN,
    Step(block=8),
    Step(block=16),
    Step(block=32),
    Step(of=4, only="ragged"),
    Step(of=16, only="ragged"),
    Step(of=4, only="whole"),
    Step(block=16, of=4, only="whole"),
)
"""How a width may count. Which of these do is measured."""

_PAIRS = 3  # widths of a region up to which pairs of them are tried
_LEAST = 1e-4  # a product that never makes up this share of its region is left out

Array = NDArray[np.float64]


def fit(
    places: Mapping[str, Place], widths: Sequence[Width], samples: Sequence[Sample]
) -> tuple[Region, ...]:
    """Fit all regions, and how their sum becomes the time of the whole network.

    Args:
        places: The regions by name.
        widths: The widths of the network.
        samples: What was measured.
    """
    lengths = np.array([sample.lengths for sample in samples])
    total = np.zeros(len(samples))
    found = []
    for name, place in places.items():
        times = np.array([sample.regions.get(name, 0.0) for sample in samples])
        parts = _parts(place, widths)
        columns = columns_of(parts, lengths)
        shares = solve(columns, times)
        total += columns @ shares
        most = (columns * shares).max(0)
        kept = np.flatnonzero(most > _LEAST * max(times.max(), 1e-12))
        made = [(float(shares[i]), *parts[i]) for i in kept]
        found.append((name, place.op, made))
    whole = np.array([sample.whole for sample in samples])
    factor, between = _calibrate(total, whole)
    regions = [
        Region(name, op, tuple(Part(ms * factor, w, s) for ms, w, s in parts))
        for name, op, parts in found
    ]
    return *regions, Region("between the regions", "", (Part(between, (), ()),))


def predict(regions: Sequence[Region], lengths: np.ndarray) -> Array:
    """Return the milliseconds of networks: `[networks, widths]` -> `[networks]`."""
    total = np.zeros(len(lengths))
    for region in regions:
        columns = columns_of([(part.widths, part.steps) for part in region.parts], lengths)
        total += columns @ np.array([part.ms for part in region.parts])
    return total


Product = tuple[tuple[int, ...], tuple[Step, ...]]


def _parts(place: Place, widths: Sequence[Width]) -> list[Product]:
    """List the products that a region's time may be made of."""

    def steps(w: int) -> tuple[Step, ...]:
        return STEPS if widths[w].alone else (PLAIN,)

    made: list[Product] = [((), ())]
    made += [((w,), (step,)) for w in place.widths for step in steps(w)]
    pairs: list[tuple[int, int]] = [(w, w) for w in place.squared]
    if len(place.widths) <= _PAIRS:
        pairs += combinations(place.widths, 2)
    for a, b in pairs:
        made += [((a, b), both) for both in _unordered(a, b, steps(a), steps(b))]
    return made


def _unordered(
    a: int, b: int, of_a: tuple[Step, ...], of_b: tuple[Step, ...]
) -> Iterator[tuple[Step, Step]]:
    if a != b:
        yield from product(of_a, of_b)
    else:
        yield from ((s, t) for i, s in enumerate(of_a) for t in of_a[i:])


def columns_of(parts: Sequence[Product], lengths: np.ndarray) -> Array:
    """Evaluate products: `[networks, products]`."""
    stepped: dict[tuple[int, Step], np.ndarray] = {}
    columns = np.ones((len(lengths), len(parts)))
    for i, (indices, steps) in enumerate(parts):
        for w, step in zip(indices, steps, strict=True):
            if (w, step) not in stepped:
                stepped[w, step] = step(lengths[:, w])
            columns[:, i] *= stepped[w, step]
    return columns


def solve(columns: Array, times: Array) -> Array:
    """Fit times by nonnegative shares of columns.

    A small time counts more than its size, but not as much as a large one.
    """
    weights = 1 / (times + times.mean() + 1e-9)
    weighted = columns * weights[:, None]
    scale = np.linalg.norm(weighted, axis=0).clip(min=1e-12)
    shares, _ = nnls(weighted / scale, times * weights, maxiter=100 * len(scale))
    return np.asarray(shares / scale)


def _calibrate(total: Array, whole: Array) -> tuple[float, float]:
    """Find the factor and the constant that lead from the sum of regions to the whole.

    Both are medians: a sample that something else on the machine disturbed weighs no more.
    """
    best = (np.inf, 1.0, 0.0)
    for share in np.linspace(0, 0.5, 26):
        between = float(share * whole.min())
        factor = float(np.median((whole - between) / total.clip(min=1e-9)))
        miss = float(np.median(np.abs((factor * total + between) / whole - 1)))
        best = min(best, (miss, factor, between))
    return best[1], best[2]
