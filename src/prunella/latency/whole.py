"""The time of a whole network, on a machine that does other things too."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from prunella.runtimes import Prepared

_LEAST, _MOST = 3, 12  # timed runs of one network
_SECONDS = 0.4  # after which no further run is timed
_QUANTILE = 0.2


def low(times: Sequence[float]) -> float:
    """Return a low quantile: what others do on the machine only ever makes a run longer."""
    return float(np.quantile(times, _QUANTILE))


def repeat(run: Callable[[], Any]) -> list[float]:
    """Run once untimed and then a few times; return the milliseconds of each."""
    run()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < _MOST and (len(times) < _LEAST or time.perf_counter() - began < _SECONDS):
        started = time.perf_counter_ns()
        run()
        times.append((time.perf_counter_ns() - started) / 1e6)
    return times


def time_whole(ready: Prepared) -> float:
    """Return how many milliseconds a network takes."""
    return low(repeat(ready.run))
