"""How long a stage still takes: one tiny protocol, and its display on a terminal or in a log.

A stage is given `progress` and calls it as `with progress("valid", 79) as advance: ... advance(1)`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from prunella.errors import ConfigError

# progress(label, total) opens a stage and yields advance(n); a total of None is an unknown one.
Progress = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]

LINE_SECONDS = 10.0
_SHORT_SECONDS = 1.0

# Stages nest (an epoch inside an experiment): inner ones join the display of the outermost.
_shown: ContextVar[Bars | None] = ContextVar("_shown", default=None)


@contextmanager
def silent(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show nothing."""
    yield lambda count: None


def or_silent(progress: Progress | None) -> Progress:
    """Replace None, which callers may pass, by `silent`.

    Raises:
        ConfigError: It cannot be called.
    """
    if progress is None:
        return silent
    if not callable(progress):
        raise ConfigError(
            "`progress` is a function that opens a stage, such as "
            f"`prunella.progress.rich_progress`, got {progress!r}"
        )
    return progress


@contextmanager
def rich_progress(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar with the remaining time on a terminal, else a plain line now and then.

    Both go to stderr: stdout is for results.
    """
    console = Console(stderr=True)
    moves = console.is_terminal and not console.is_dumb_terminal
    stage = _bar(console, label, total) if moves else _lines(console, label, total)
    with stage as advance:
        yield advance


@contextmanager
def _bar(console: Console, label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    outer = _shown.get()
    if outer is not None:
        task = outer.add_task(label, total=total)
        try:
            yield lambda count: outer.advance(task, count)
        finally:
            outer.remove_task(task)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, transient=True) as bars:
        token = _shown.set(bars)
        try:
            task = bars.add_task(label, total=total)
            yield lambda count: bars.advance(task, count)
        finally:
            _shown.reset(token)


@contextmanager
def _lines(console: Console, label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    start = said = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal said, done
        done += count
        now = time.monotonic()
        if now - said >= LINE_SECONDS:
            said = now
            console.out(line(label, done, total, now - start), highlight=False)

    yield advance
    seconds = time.monotonic() - start
    if seconds >= _SHORT_SECONDS:
        console.out(f"{label}: done, {done} in {duration(seconds)}", highlight=False)


def line(label: str, done: int, total: int | None, seconds: float) -> str:
    """Say in one line how far a stage is; the rest is assumed to go at the pace so far.

    Example:
        >>> line("valid", 30, 120, 10.0)
        'valid: 30/120 (25%), 30 s left'
    """
    if total is None or done <= 0:
        return f"{label}: {done} in {duration(seconds)}"
    left = max(total - done, 0) * seconds / done
    return f"{label}: {done}/{total} ({100 * done // total}%), {duration(left)} left"


def numbered(count: int, name: str) -> str:
    """Write how many there are of something: `1 experiment`, `3 experiments`."""
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def duration(seconds: float) -> str:
    """Write seconds as people say them: `9.5 s`, `42 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s" if seconds != int(seconds) else f"{int(seconds)} s"
    whole = round(seconds)
    minutes, hours = whole // 60, whole // 3600
    if hours:
        return f"{hours} h {minutes % 60:02d} min"
    return f"{minutes} min {whole % 60:02d} s" if minutes else f"{whole} s"
