"""Holding a work folder: for one task alone, and without losing what was finished there."""

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator
from filecmp import cmp
from pathlib import Path

from prunella import report
from prunella.config import Config
from prunella.errors import WorkspaceError
from prunella.pipeline.budgets import asked
from prunella.pipeline.context import Context, borrowed
from prunella.pipeline.peers import by_first
from prunella.pipeline.processors import look_at_threads
from prunella.pipeline.recording import RECORD, assemble, ended
from prunella.pipeline.slots import Slot
from prunella.progress import Progress
from prunella.workspace import Workspace

EARLIER = "earlier"

# What a run ends with, and what is made of that.
_RESULTS = ("final", "export", report.FILE)

log = logging.getLogger("prunella")


@contextlib.contextmanager
def opened(
    config: Config, progress: Progress | None = None, typed: str | None = None
) -> Iterator[Context]:
    """Hold the work folder for the length of a verb, and leave torch to the caller as it was.

    Raises:
        WorkspaceError: Another process holds it, or another task's run is in it.
    """
    context = Context(config, progress, typed)
    with contextlib.ExitStack() as held:
        by_first(context.peers, lambda: held.enter_context(context.space.locked()))
        held.enter_context(borrowed(context))
        if context.peers.main and context.device.type == "cpu":
            look_at_threads()
        check_owner(context)
        yield context
        context.peers.wait()


def check_owner(context: Context) -> None:
    """See that the work folder is not another task's: nothing of that would be of use to this one.

    A task is another where its file is and its model or its name, too: a file may move.

    Raises:
        WorkspaceError: It is; nothing in it was touched.
    """
    before = context.space.read("baseline")
    if before is None:
        return
    spec, old = context.config.task.spec, str(before.inputs["task"]["spec"])
    name = before.payload.get("task", context.task.name)
    same = name == context.task.name and before.inputs["weights"] == context.weights
    if Path(spec).name == Path(old).name or same:
        return
    folder = context.space.folder
    remedy = folder.with_name(f"{folder.name}-{Path(spec).stem}")
    raise WorkspaceError(
        f"`{folder}` holds the run of another task, `{old}`, and `{spec}` would take its place. "
        f"Give this one a folder of its own with `--run.folder {remedy}`, or remove `{folder}`"
    )


def making_way(context: Context, slot: Slot) -> Callable[[], None]:
    """Return what the first process calls before it makes anew what a finished run rests on.

    That moves the final model, the report and the record to a folder of their own, which `report`
    and `export` read like any other. Of a run that has not ended there is nothing to move.

    Args:
        context: Of the run.
        slot: The attempt whose stage is made; what comes after it is no part of the record.
    """
    asked(context)  # here, where all processes are: it may have to measure

    def move() -> None:
        space = context.space
        if not ended(space):
            return
        aside = _aside(space)
        sizes = [path.stat().st_size for path in aside.parent.rglob("*") if path.is_file()]
        log.warning(
            "this replaces a run that was finished: its final model and report are now in `%s`. "
            "All in `%s` take %.1f MB; what you need no more can be removed",
            aside,
            aside.parent.name,
            sum(sizes) / 1e6,
        )
        space.forget("final")
        for name in _RESULTS:
            space.clear(name)
        # Last: as long as it says that the run has ended, a kill leaves this to be done again.
        space.write(RECORD, {}, assemble(context, upto=slot).to_data())

    return move


def _aside(space: Workspace) -> Path:
    """Copy what a run ended with to the next folder of `earlier`; what a kill left there is it."""
    folder, file = space.folder, f"{RECORD}.json"
    there = [old for old in (folder / EARLIER).glob("*") if old.name.isdecimal()]
    last = max(there, key=lambda old: int(old.name), default=None)
    if last is not None and (last / file).is_file() and cmp(last / file, folder / file, False):
        return last
    number = 1 + (0 if last is None else int(last.name))
    return space.replace_folder(f"{EARLIER}/{number:02}", lambda fresh: _copy(folder, fresh))


def _copy(folder: Path, fresh: Path) -> None:
    # File by file: `shutil.copytree` would make an error without a number of that of a full disk.
    for name in (f"{RECORD}.json", *_RESULTS):
        for path in (folder / name, *(folder / name).rglob("*")):
            if path.is_file():
                copy = fresh / path.relative_to(folder)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, copy)
