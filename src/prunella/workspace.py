"""The files of a run: atomic, checked when read, locked, resumable; the only file that writes them.

A stage's result is a JSON record: what it was made from (`inputs`, one digest or setting a part),
its values (`payload`), the sha256 of the files beside it, and a sha256 of itself. Asked again with
the same inputs it is reused; with other inputs it is made anew, and the parts that differ are the
reason given. A record is written last and removed before its files are replaced, so that a kill
between any two instructions leaves either a whole result or none.
"""

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from prunella.errors import WorkspaceError
from prunella.files import UNFINISHED, cannot_write, guard, replacing

SCHEMA = 1

# Which command makes a record again, by the record's own name (the last part of its path).
_RECREATE = {
    "baseline": "prunella analyze",
    "sensitivity": "prunella analyze",
    "prune": "prunella prune",
    "finetune": "prunella finetune",
    "final": "prunella transform",
    "test": "prunella transform",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A record as read: what it was made from, its values, the sha256 of the files beside it."""

    inputs: Mapping[str, Any]
    payload: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to "is there a result of these inputs?": the entry, or why there is none.

    `changed` says what is other than when the result that there is was made.
    """

    entry: Entry | None
    reason: str
    changed: str = ""


class Workspace:
    """A folder that belongs to one run.

    Args:
        folder: Created with its parents when first written to.
        main: Whether this process writes; of several that share a folder only one does.

    Raises:
        WorkspaceError: A file is in its place, or it cannot be looked into.
    """

    def __init__(self, folder: Path, *, main: bool = True) -> None:
        _check_place(folder)
        self.folder = folder
        self._main = main

    def path(self, *parts: str) -> Path:
        """Name a file or folder of the run, making the folder it is in."""
        path = self.folder.joinpath(*parts)
        with guard(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; the operating system lets go of it when this process ends, however.

        Raises:
            WorkspaceError: Another process holds it.
        """
        if not self._main:
            yield
            return
        lock = FileLock(self.path("lock"))
        owner = self.path("lock.owner")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise WorkspaceError(
                f"another run is at work in `{self.folder}` (process {_text(owner)}). Wait "
                "for it, end it, or give this one a folder of its own with `--run.folder NAME`"
            ) from None
        except OSError as cause:
            raise cannot_write(self.folder, cause) from cause
        try:
            self._sweep()
            write_atomic(owner, str(os.getpid()).encode())
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()

    def _sweep(self) -> None:
        # What a killed process had half written: nothing refers to it.
        for left in self.folder.rglob(f"{UNFINISHED}*"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)

    def read(self, name: str) -> Entry | None:
        """Read a record, None where there is none.

        Args:
            name: Its path without ".json", e.g. "rounds/01/1/prune".

        Raises:
            WorkspaceError: The record, or a file it vouches for, is not what was written.
        """
        path = self.folder / f"{name}.json"
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as cause:
            raise self._damaged(name, path, f"it cannot be read ({cause})") from cause
        try:
            data = json.loads(text)
        except json.JSONDecodeError as cause:
            raise self._damaged(name, path, f"it is truncated or not JSON ({cause})") from cause
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else None
            raise self._damaged(name, path, f"its schema is {found!r}, not {SCHEMA}")
        body = {part: data.get(part) for part in ("inputs", "payload", "files")}
        if data.get("sha256") != digest(body):
            raise self._damaged(name, path, "its content does not match its sha256")
        entry = Entry(data["inputs"], data["payload"], data["files"])
        for file, sha256 in entry.files.items():
            self._check_file(name, file, sha256)
        return entry

    def write(
        self,
        name: str,
        inputs: Mapping[str, Any],
        payload: Mapping[str, Any],
        files: tuple[str, ...] = (),
    ) -> None:
        """Write a record, last of all that it vouches for.

        Args:
            name: Its path without ".json".
            inputs: What it was made from, one JSON value a part; a change of any makes it stale.
            payload: Its values, plain JSON.
            files: Files or folders written before, relative to the work folder.
        """
        if not self._main:
            return
        present = [path for file in files for path in _files_of(self.folder / file)]
        body = {
            "inputs": _plain(inputs),
            "payload": _plain(payload),
            "files": {str(path.relative_to(self.folder)): digest_file(path) for path in present},
        }
        text = json.dumps({"schema": SCHEMA, "sha256": digest(body), **body}, indent=1)
        write_atomic(self.path(f"{name}.json"), text.encode())

    def write_text(self, name: str, text: str) -> None:
        """Write a file that a record will vouch for; `name` is relative to the work folder."""
        if self._main:
            write_atomic(self.path(name), text.encode())

    def find(self, name: str, inputs: Mapping[str, Any]) -> Found:
        """Look for a result made from exactly these inputs."""
        entry = self.read(name)
        if entry is None:
            return Found(None, "")
        wanted = _plain(inputs)
        if entry.inputs == wanted:
            return Found(
                entry, f"reusing `{self.folder / name}.json`: nothing it depends on changed"
            )
        parts = sorted(entry.inputs.keys() | wanted.keys())
        changed = ", ".join(
            text
            for part in parts
            if entry.inputs.get(part) != wanted.get(part)
            for text in _differences(part, entry.inputs.get(part), wanted.get(part))
        )
        reason = f"making `{self.folder / name}.json` again: {changed} changed"
        return Found(None, reason, changed)

    def forget(self, name: str) -> None:
        """Remove a record if it is there, before the files it vouches for are replaced."""
        if not self._main:
            return
        with guard(self.folder):
            (self.folder / f"{name}.json").unlink(missing_ok=True)

    def clear(self, name: str) -> None:
        """Remove a file of the run, or a folder with all that is in it, records first."""
        if not self._main:
            return
        path = self.folder / name
        with guard(self.folder):
            for record in sorted(path.rglob("*.json")):
                record.unlink(missing_ok=True)
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def replace_folder(self, name: str, fill: Callable[[Path], object]) -> Path:
        """Fill a fresh folder with `fill(folder)` and put it in the place of the old one."""
        target = self.path(name)
        if not self._main:
            return target
        with guard(self.folder):
            fresh = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=target.parent))
            try:
                fill(fresh)
                if target.exists():
                    shutil.rmtree(target)
                fresh.replace(target)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
        return target

    def _check_file(self, name: str, file: str, sha256: str) -> None:
        path = self.folder / file
        try:
            found = digest_file(path)
        except FileNotFoundError:
            raise self._damaged(name, path, "it is missing") from None
        except OSError as cause:
            raise self._damaged(name, path, f"it cannot be read ({cause})") from cause
        if found != sha256:
            raise self._damaged(name, path, "its content does not match its recorded sha256")

    def _damaged(self, name: str, path: Path, what: str) -> WorkspaceError:
        verb = _RECREATE.get(name.rpartition("/")[2], "")
        command = f"`{verb}` (or `prunella run`)" if verb else "`prunella run`"
        return WorkspaceError(
            f"`{path}` is damaged: {what}. Put back the file that was written, or delete "
            f"`{self.folder / name}.json` and run {command} to make it again; the other results "
            "are kept"
        )


def _check_place(folder: Path) -> None:
    try:
        mode = folder.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as cause:
        why = os.strerror(cause.errno or 0)
    else:
        if stat.S_ISDIR(mode):
            return
        why = "a file is there"
    raise WorkspaceError(
        f"`{folder}` cannot be the work folder: {why}. Name another with `--run.folder NAME`"
    )


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that at any moment it holds the old content or the new one, on disk.

    Raises:
        WorkspaceError: The disk is full or may not be written; the old content stays.
    """
    with guard(path), replacing(path) as fresh:
        fresh.write_bytes(data)


def digest(value: object) -> str:
    """Hash a JSON value; equal values hash equal whatever the order of their keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def digest_file(path: Path) -> str:
    """Hash a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    # A round trip makes tuples lists and keys strings, so that what is compared is what is read.
    plain: dict[str, Any] = json.loads(json.dumps(value))
    return plain


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return "unknown"


def _files_of(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [path]


def _differences(part: str, old: object, new: object) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        return [
            text
            for key in keys
            for text in _differences(f"{part}.{key}", old.get(key), new.get(key))
        ]
    shown = [json.dumps(value) for value in (old, new)]
    if any(len(text) > 40 for text in shown):
        return [f"the {part}"]
    return [f"the {part} ({shown[0]} -> {shown[1]})"]
