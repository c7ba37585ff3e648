"""Put a file in the place of another in one step, so that a kill or a full disk loses nothing."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from prunella.errors import ConfigError, WorkspaceError

UNFINISHED = ".unfinished-"
"""Prefix of what is being written; whatever still has it after a kill may be deleted."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DISK = {
    *_FULL,
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST),  # not ours to write
    *(errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP),  # no place to write to
    *(errno.EIO, errno.ENODEV, errno.ESTALE),  # gone
}


def located(path: Path | str) -> Path:
    """Read a path that a caller gave.

    Raises:
        ConfigError: It is something else.
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(
            f"a path is text or a pathlib.Path, got {type(path).__name__}: write where the files "
            "are, and look at the order of the arguments"
        )
    return Path(path)


def expanded(path: Path | str) -> Path:
    """Put the user's home in the place of a leading "~", where the shell has not done it.

    Raises:
        ConfigError: There is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as cause:
        raise ConfigError(
            f"`{path}` is in nobody's home ({cause}). Write the whole path, or `./{path}` for a "
            "file of that name"
        ) from cause


@contextlib.contextmanager
def guard(where: Path, kept: str = "What was finished before") -> Iterator[None]:
    """Turn a full or forbidden disk, met by anyone who writes inside, into a WorkspaceError.

    Args:
        where: What is written, for the message.
        kept: What is not lost by it.
    """
    try:
        yield
    except OSError as cause:
        if cause.errno not in _DISK:
            raise
        raise cannot_write(where, cause, kept) from cause
    except SafetensorError as cause:
        # safetensors writes outside Python and reports the system's error as text.
        if not any(f"os error {number})" in str(cause) for number in _DISK):
            raise
        raise cannot_write(where, cause, kept) from cause


def cannot_write(
    where: Path, cause: Exception, kept: str = "What was finished before"
) -> WorkspaceError:
    """Make the error that says what could not be written, why, and what to do."""
    number = cause.errno if isinstance(cause, OSError) else None
    full = number is None or number in _FULL
    remedy = (
        "free some space (or allow writing there)"
        if full
        else "allow writing there, or mend the path"
    )
    return WorkspaceError(
        f"cannot write `{where}`: {os.strerror(number) if number else cause}. {kept} is kept: "
        f"{remedy}, and give the same command again"
    )


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
