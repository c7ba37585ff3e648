"""Measure in several processes at once, on the CPU."""

import multiprocessing
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait

import numpy as np
import torch
from torch import nn

from prunella.errors import ConfigError, TaskError
from prunella.model.structure import device_of

_LOOK = 0.5
"""Seconds between two looks at whether the first process is still there."""

Step = tuple[str, int]
"""A group, and how many of its channels are removed."""

Value = float | None
"""The metric; None where it is no finite number."""


def check_workers(workers: int, model: nn.Module) -> None:
    """Raise `ConfigError` where so many processes cannot measure what one would.

    They are forked, so that everything the user's function needs is there, and nothing is sent.
    """
    if not isinstance(workers, int | np.integer) or workers < 1:
        raise ConfigError(f"a whole number of processes measures, at least one, got {workers=}")
    if workers == 1:
        return
    if device_of(model).type != "cpu" or not hasattr(os, "fork"):
        raise ConfigError(
            f"{workers=} share the processor, on systems that fork; the model is on "
            f"`{device_of(model)}`. Use workers=1"
        )
    if torch.get_num_threads() != 1:
        raise ConfigError(
            f"{workers=} compute with one thread each, and so must this process, for the same "
            "numbers: call `torch.set_num_threads(1)` first"
        )


def shared_out(
    steps: Sequence[Step], workers: int, measure: Callable[[Step], Value]
) -> Iterator[tuple[Step, Value]]:
    """Measure steps in forked processes; yield values as they come.

    Groups are dealt out in turn, so that each process has early and late ones.

    Args:
        steps: In the order of the network.
        workers: How many processes.
        measure: Measures one step; what it changes is changed in its process alone.

    Raises:
        TaskError: A process failed, or was ended from outside.
    """
    names = list(dict.fromkeys(name for name, _ in steps))
    turn = {name: i % workers for i, name in enumerate(names)}
    parts = [
        [step for step in steps if turn[step[0]] == i] for i in range(min(workers, len(names)))
    ]
    forking = multiprocessing.get_context("fork")
    running = {}
    missing = set(steps)
    try:
        for part in parts:
            receiver, sender = forking.Pipe(duplex=False)
            process = forking.Process(target=_work, args=(part, measure, sender, os.getpid()))
            with warnings.catch_warnings():
                # Of threads, which are torch's own here and idle: nothing runs beside this one.
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            sender.close()
            running[receiver] = process
        waiting = set(running)
        while waiting:
            for ready in wait(list(waiting)):
                assert isinstance(ready, Connection)
                try:
                    step, value, error = ready.recv()
                except EOFError:
                    waiting.remove(ready)
                    continue
                if error is not None:
                    raise error
                missing.discard(step)
                yield step, value
    finally:
        for process in running.values():
            process.terminate()
            process.join()
    if missing:
        raise TaskError(
            f"a process that measured was ended from outside, with {len(missing)} values to go (it "
            "may have run out of memory). Start again with fewer workers: with `record`, what was "
            "measured is kept"
        )


def _work(
    part: Sequence[Step], measure: Callable[[Step], Value], sender: Connection, first: int
) -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(first,), daemon=True).start()
    try:
        for step in part:
            sender.send((step, measure(step), None))
    except TaskError as error:
        sender.send((None, 0.0, error))
    except Exception as error:  # noqa: BLE001 - whatever the user's function raises
        text = f"evaluating in another process failed: {type(error).__name__}: {error}"
        sender.send((None, 0.0, TaskError(text)))
    except KeyboardInterrupt:
        pass  # the first process has it too
    finally:
        sender.close()


def _end_with(first: int) -> None:
    """End this process when the first one was killed: nobody reads what it measures.

    The pipe does not tell, since processes forked later hold its other end as well.
    """
    while os.getppid() == first:
        time.sleep(_LOOK)
    os._exit(1)
