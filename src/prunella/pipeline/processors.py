"""Whether there are processors for the CPU threads of a run."""

import logging
from statistics import median
from time import perf_counter

import torch
from torch.nn.functional import conv2d

from prunella.runtimes.in_torch import threads_set

# So much slower than one thread, several are waiting for each other: on a machine that is free
# they are never slower than it by more than the noise of a median.
SLOWER = 1.5
_SECONDS = 0.2
_LEAST = 3

log = logging.getLogger("prunella")


def look_at_threads() -> None:
    """Warn where several threads take longer for the same work than one.

    Threads of OpenMP share each operation and wait for the last of them by spinning. Where another
    program has one of the processors, or a container allows fewer than torch sees, an epoch takes
    several times as long as with one thread, and nothing else tells why. It is measured, for
    neither the machine's load (of the host, in a container) nor its processors' number (not the
    quota's) says it. The number is not changed: results depend on it, in their last bits.
    """
    count = torch.get_num_threads()
    if count == 1:
        return
    several, one = _milliseconds(count), _milliseconds(1)
    if several > SLOWER * one:
        log.warning(
            "%d threads take %.1f times as long as one here: other programs use the processors, "
            "or this one may not use them all. `--run.threads 1` is faster as long as that is so",
            count,
            several / one,
        )


def _milliseconds(count: int) -> float:
    """Time a convolution."""
    images, weight = torch.zeros(4, 64, 32, 32), torch.zeros(64, 64, 3, 3)
    times: list[float] = []
    with threads_set(count), torch.inference_mode():
        conv2d(images, weight, padding=1)
        while len(times) < _LEAST or sum(times) < _SECONDS:
            start = perf_counter()
            conv2d(images, weight, padding=1)
            times.append(perf_counter() - start)
    return 1000 * median(times)
