"""Put a file in the place of another in one step, so that a kill or a full disk loses nothing."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

UNFINISHED = ".unfinished-"
"""Prefix of what is being written; whatever still has it after a kill may be deleted."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the name of a new file beside `path`; on leaving, it is synced and takes its place.

    At any moment `path` holds its old content or its new one, on disk. Where the body or the disk
    fails, the old one stays and nothing is left behind.
    """
    handle, name = tempfile.mkstemp(prefix=UNFINISHED, dir=path.parent)
    os.close(handle)
    fresh = Path(name)
    try:
        yield fresh
        fresh.chmod(0o666 & ~_umask())  # mkstemp makes files that only their owner may read
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Write a folder's names to disk: without it a new name may be lost with the power."""
    with contextlib.suppress(OSError):  # not every system can do it
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    # There is no way to read it but to set it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
