"""A process for each network, with a time and a memory limit."""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TextIO

import torch

from benchmarks.zoo.row import Row

_TICK = 0.1
_PATIENCE = 10
_FORK = multiprocessing.get_context("fork")
"""Children begin as copies of a process that has imported everything: that takes seconds."""

Work = Callable[[str, Callable[[Any], None]], None]
"""Measures the network of a name and says its rows and stages."""


@dataclass(frozen=True)
class Limits:
    """What one network may take: seconds of the processor's time, and memory.

    A process that waits for something uses no processor: after `_PATIENCE` times as long it ends.
    """

    seconds: int
    memory_gb: int


@dataclass
class _Child:
    """A running process and what it has said so far."""

    name: str
    process: Any
    said: Connection
    output: TextIO
    began: float = field(default_factory=time.monotonic)
    stage: str = "start"
    row: Row | None = None


def run(names: Iterable[str], work: Work, limits: Limits, jobs: int) -> Iterator[Row]:
    """Measure networks, each in a process of its own; yield rows as they come.

    Args:
        names: The networks.
        work: What a child does.
        limits: Of each. Memory is what is resident, looked up ten times a second (under Linux).
        jobs: How many run at a time.
    """
    waiting, running = list(names)[::-1], list[_Child]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_start(waiting.pop(), work))
            wait([child.said for child in running], _TICK)
            for child in list(running):
                _listen(child)
                over = _over(child, limits)
                if over or not child.process.is_alive():
                    running.remove(child)
                    row = _end(child, over)
                    yield replace(row, limits=(limits.seconds, limits.memory_gb))
    finally:
        for child in running:
            child.process.kill()


def _start(name: str, work: Work) -> _Child:
    receiver, sender = _FORK.Pipe(duplex=False)
    output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed when the child has ended
    process = _FORK.Process(target=_child, args=(name, work, sender, output), daemon=True)
    process.start()
    sender.close()
    return _Child(name, process, receiver, output)


def _child(name: str, work: Work, sender: Connection, output: TextIO) -> None:
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    # A fork leaves torch's thread pool to be made anew by whoever asks for it first. Autograd's
    # thread and this one would ask at the same time, and one of them would find none and abort.
    torch.set_num_threads(1)
    work(name, sender.send)


def _listen(child: _Child) -> None:
    try:
        while child.said.poll():
            said = child.said.recv()
            if isinstance(said, Row):
                child.row = said
            else:
                child.stage = said
    except EOFError:
        child.process.join()


def _over(child: _Child, limits: Limits) -> str:
    waited = time.monotonic() - child.began
    if waited > limits.seconds:  # only then can it have used as much
        used = _used(child.process.pid, waited)
        if used > limits.seconds:
            return f"more than {limits.seconds} seconds"
        if waited > _PATIENCE * limits.seconds:
            return f"used {used:.0f} seconds and then waited"
    if _resident(child.process.pid) > limits.memory_gb * 1e9:
        return f"more than {limits.memory_gb} GB"
    return ""


def _used(pid: int, waited: float) -> float:
    """Look up the processor time of a process; where the system does not tell, all that passed."""
    try:
        # After the name, which stands in parentheses and may contain anything: user and system.
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    except OSError:
        return waited
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def _resident(pid: int) -> int:
    """Look up how much memory a process holds; 0 where the system does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _end(child: _Child, over: str) -> Row:
    """Return the row of a child that ended or must end."""
    child.process.kill()
    child.process.join()
    _listen(child)
    child.output.seek(0)
    printed = child.output.read().strip().splitlines()
    child.output.close()
    code = child.process.exitcode
    if not over and not code and child.row is not None:
        return child.row
    said = over or " ".join([*printed[-1:], f"(exit code {code})"])[:300]
    if child.row is None:
        return Row(child.name, stage=child.stage, why=said)
    # Pruned and proven; what came after did not end.
    return replace(child.row, checks={**child.row.checks, child.stage: said})
