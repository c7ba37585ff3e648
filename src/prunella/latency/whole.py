"""The time of a whole network, on a machine that does other things too."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from prunella.runtimes import Prepared, Runtime

_LEAST, _MOST = 3, 12  # timed runs of one network
_SECONDS = 0.4  # after which no further run is timed
_QUANTILE = 0.2


def low(times: Sequence[float]) -> float:
    """Return a low quantile: what others do on the machine only ever makes a run longer."""
    return float(np.quantile(times, _QUANTILE))


def repeat(run: Callable[[], Any], clock: Callable[[], int] = time.perf_counter_ns) -> list[float]:
    """Run once untimed and then a few times; return the milliseconds of each.

    Args:
        run: What to time.
        clock: Tells nanoseconds.
    """
    run()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < _MOST and (len(times) < _LEAST or time.perf_counter() - began < _SECONDS):
        started = clock()
        run()
        times.append((clock() - started) / 1e6)
    return times


def time_whole(ready: Prepared) -> float:
    """Return how many milliseconds a network takes."""
    return low(repeat(ready.run, clock_for(ready.runtime)))


def clock_for(runtime: Runtime) -> Callable[[], int]:
    """Return the clock, in nanoseconds, that sees least of what else the machine does.

    A single thread is timed by the work it did: a clock on the wall would count the time it waited
    for a core. All runtimes but OpenVINO promise that it is the caller's.
    """
    if runtime.threads != 1 or runtime.device != "cpu":
        return time.perf_counter_ns
    return time.process_time_ns if runtime.name == "openvino" else time.thread_time_ns
