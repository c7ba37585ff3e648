"""An append-only file of results that survives a kill after any line."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prunella.errors import WorkspaceError
from prunella.files import located

SCHEMA = 1


class Journal:
    """Results of a long computation, one JSON line each, under a key that says what they are of.

    The first line holds the key. Every line carries a hash of itself and of all lines before it:
    a line that was edited, removed or reordered is found out (`WorkspaceError`), while a last line
    without its end is what a kill leaves behind and is ignored. A journal whose key differs is
    stale: it is begun again, and `stale` names the parts of the key that changed.
    """

    def __init__(self, path: Path | str, key: Mapping[str, str]) -> None:
        self.path = located(path)
        self.stale: tuple[str, ...] = ()
        self._entries: list[dict[str, Any]] = []
        self._hash = ""
        head = {"schema": SCHEMA, "key": dict(key)}
        lines = list(self._read())
        if lines and lines[0] == head:
            self._entries = lines[1:]
            return
        if lines:
            old = lines[0].get("key", {}) if lines[0].get("schema") == SCHEMA else {}
            self.stale = tuple(name for name in key if old.get(name) != key[name]) or ("schema",)
        self._begin(head)

    @property
    def entries(self) -> tuple[Mapping[str, Any], ...]:
        """Everything appended so far, in order."""
        return tuple(self._entries)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add one result; it is on the disk when this returns."""
        line, seal = _sealed(entry, self._hash)
        try:
            size = self.path.stat().st_size
            try:
                with self.path.open("ab") as file:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    os.truncate(self.path, size)  # half a line must not stand before the next
                raise
        except OSError as cause:
            raise self._unwritable(cause) from cause
        self._hash = seal
        self._entries.append(dict(entry))

    def _read(self) -> Iterator[dict[str, Any]]:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as cause:
            raise WorkspaceError(f"`{self.path}` cannot be read: {cause}") from cause
        whole, _, rest = content.rpartition(b"\n")
        lines = whole.split(b"\n") if whole else []
        for number, line in enumerate(lines, start=1):
            yield self._opened(line, number)
        if rest:
            self._drop_tail(len(content) - len(rest))

    def _opened(self, line: bytes, number: int) -> dict[str, Any]:
        """Parse one line and check its seal."""
        try:
            text, seal = json.loads(line)
            entry = json.loads(text)
        except (ValueError, TypeError):
            entry, text, seal = None, "", None
        expected = _chain(self._hash, text)
        if not isinstance(entry, dict) or seal != expected:
            raise WorkspaceError(
                f"line {number} of `{self.path}` was changed or damaged after it was written. "
                "Delete the file to compute its results again"
            )
        self._hash = expected
        return entry

    def _drop_tail(self, size: int) -> None:
        try:
            os.truncate(self.path, size)
        except OSError as cause:
            raise self._unwritable(cause) from cause

    def _begin(self, head: Mapping[str, Any]) -> None:
        """Replace the file by one with nothing but the key, in one step."""
        line, self._hash = _sealed(head, "")
        fresh = self.path.with_name(self.path.name + ".new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with fresh.open("wb") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.path)
        except OSError as cause:
            raise self._unwritable(cause) from cause

    def _unwritable(self, cause: OSError) -> WorkspaceError:
        return WorkspaceError(
            f"`{self.path}` cannot be written: {cause.strerror or cause}. What it held is intact; "
            "free space or fix the permissions and start again to go on from there"
        )


def _sealed(entry: Mapping[str, Any], before: str) -> tuple[bytes, str]:
    """Write one entry as a line, with the hash of it and everything before it."""
    text = json.dumps(entry, allow_nan=False)
    seal = _chain(before, text)
    return json.dumps([text, seal]).encode() + b"\n", seal


def _chain(before: str, text: str) -> str:
    return hashlib.sha256(f"{before}\n{text}".encode()).hexdigest()[:16]
