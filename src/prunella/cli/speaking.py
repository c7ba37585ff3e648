"""What the command line says: data to stdout, everything else to stderr."""

import contextlib
import io
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from prunella import launcher
from prunella.errors import PrunellaError

USER_ERROR = 2
_BOUNDLESS = 10_000
WIDE = 120  # columns where the output is no terminal and has no width of its own


def console(error: bool = False) -> Console:
    """Give the console of stdout, or of stderr.

    Lines are left to the terminal to wrap: a command or a path is copied as one line then.
    """
    stream = sys.stderr if error else sys.stdout
    width = None if stream.isatty() else WIDE
    return Console(file=stream, width=width, highlight=False, soft_wrap=True)


def show(table: Table) -> None:
    """Print a table on stdout, wider than the terminal where figures would be cut off."""
    out = console()
    boundless = out.options.update(width=_BOUNDLESS)
    out.width = max(out.width, Measurement.get(out, boundless, table).minimum)
    out.print(table)


def never_mute() -> None:
    """See that no run ends by what it says: a letter the terminal lacks, or a closed stream."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the end
            setattr(sys, name, nowhere)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


@contextlib.contextmanager
def logging_to(file: Path | None, quiet: bool) -> Iterator[None]:
    """Send the library's log to stderr, and with times to the run's own log file."""
    log = logging.getLogger("prunella")
    level = log.level
    if not launcher.first():
        yield
        return
    handlers: list[logging.Handler] = [_Terminal()]
    handlers[0].setLevel(logging.WARNING if quiet else logging.INFO)
    if file is not None:
        with contextlib.suppress(OSError):  # a log is not worth failing for; writing results is
            file.parent.mkdir(parents=True, exist_ok=True)
            handlers.append(_File(file, encoding="utf-8"))
            handlers[-1].setFormatter(
                logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")
            )
    for handler in handlers:
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(level)
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


@contextlib.contextmanager
def errors(debug: bool, command: str = "prunella") -> Iterator[None]:
    """Turn an error raised on purpose into two lines and exit code 2.

    Args:
        debug: Let it through.
        command: Whose help is referred to where an error names no remedy.
    """
    try:
        yield
    except PrunellaError as problem:
        if debug:
            raise
        what, hint = split(str(problem))
        with _telling() as mine:
            if mine:
                err = console(error=True)
                err.print(f"[bold red]error:[/] {_escape(what)}")
                err.print(f"[bold cyan]hint:[/] {_escape(hint or f'see `{command} --help`')}")
        raise typer.Exit(USER_ERROR) from None


def interrupted(command: str) -> None:
    """Say that nothing finished is lost, and how to go on."""
    with _telling() as mine:
        if mine:
            err = console(error=True)
            err.print(
                "[bold yellow]interrupted:[/] all that was finished is kept, to the last epoch"
            )
            again = f"with: {_escape(command)}"
            if launcher.launched():  # whose own words are not known here
                again = "with the command that started these processes, launcher and all"
            err.print(f"[bold cyan]hint:[/] go on {again}")


def _telling() -> AbstractContextManager[bool]:
    """Say whether this process tells why it ends; of a launcher's processes one does, for all."""
    if not launcher.launched():
        return contextlib.nullcontext(True)
    from prunella.process_group import telling

    return telling()


def say(text: str) -> None:
    """Tell a person something on stderr."""
    console(error=True).print(_escape(text))


def split(message: str) -> tuple[str, str]:
    """Take a message apart into what is wrong, and the remedy: its last sentences.

    Example:
        >>> split("`a.json` is damaged: it is empty. Delete it and run again")
        ('`a.json` is damaged: it is empty', 'Delete it and run again')
    """
    found = re.search(r"(?<=[^\s.])(?<!e\.g)\. (?=[A-Z`])|; (?=did you mean)", message)
    if found is None:
        return message, ""
    what, hint = message[: found.start()], message[found.end() :]
    return what, hint[:1].upper() + hint[1:]


class _File(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Drop what no longer fits: whoever writes a result next says that the disk is full."""


class _Terminal(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        text = _escape(self.format(record))
        if record.levelno >= logging.WARNING:
            text = f"[bold yellow]warning:[/] {text}"
        console(error=True).print(text)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
