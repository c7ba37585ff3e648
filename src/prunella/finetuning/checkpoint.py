"""A training on disk: one whole epoch or the one before it, never a mixture, never a pickle.

The folder holds `epoch-<n>.safetensors` (all tensors) and `checkpoint.json`, which names that file,
its sha256, the plain values, and a sha256 of itself. The JSON is replaced last, in one step, so a
kill at any moment leaves it naming a complete file.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from prunella.errors import WorkspaceError
from prunella.files import UNFINISHED, guard, replacing

SCHEMA = 1
INDEX = "checkpoint.json"
# The work folder sweeps files of this name when a run is started again.


@dataclass(frozen=True, slots=True)
class Saved:
    """What stands in a checkpoint: finished epochs, tensors by name, plain JSON values."""

    epoch: int
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


class Checkpoint:
    """The folder of one training.

    Args:
        folder: Made with its parents when first written to.
        identity: What the training is made from, plain JSON; a checkpoint of another identity is
            not continued.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self._identity = json.loads(json.dumps(identity))

    def read(self) -> tuple[Saved | None, str]:
        """Read what was saved last.

        Returns:
            None where there is nothing to continue, and why a checkpoint that is there was not
            taken ("" where there is none).

        Raises:
            WorkspaceError: The checkpoint is not what was written.
        """
        path = self.folder / INDEX
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None, ""
        except (OSError, ValueError) as cause:
            raise self._damaged(path, f"it is truncated or not JSON ({cause})") from cause
        body = data.get("body") if isinstance(data, dict) else None
        if not isinstance(body, dict) or data.get("schema") != SCHEMA:
            raise self._damaged(path, f"it is not a checkpoint of schema {SCHEMA}")
        if data.get("sha256") != _digest(body):
            raise self._damaged(path, "its content does not match its sha256")
        changed = _changes("", body["identity"], self._identity)
        if changed:
            return None, (
                f"the checkpoint in `{self.folder}` was not continued: {', '.join(changed)} changed"
            )
        return Saved(
            body["epoch"], self._tensors(body["file"], body["file_sha256"]), body["values"]
        ), ""

    def write(self, saved: Saved) -> None:
        """Replace what was saved before.

        Raises:
            WorkspaceError: The disk is full or may not be written; what was saved before stays.
        """
        name = f"epoch-{saved.epoch:04d}.safetensors"
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in saved.tensors.items()}
        with guard(self.folder, "The last finished epoch saved there"):
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.folder / name) as fresh:
                save_file(_apart(tensors), fresh)
            body = {
                "identity": self._identity,
                "epoch": saved.epoch,
                "file": name,
                "file_sha256": _digest_file(self.folder / name),
                "values": json.loads(json.dumps(saved.values)),
            }
            text = json.dumps({"schema": SCHEMA, "sha256": _digest(body), "body": body}, indent=1)
            with replacing(self.folder / INDEX) as fresh:
                fresh.write_text(text, encoding="utf-8")
            for old in (
                *self.folder.glob("epoch-*.safetensors"),
                *self.folder.glob(f"{UNFINISHED}*"),
            ):
                if old.name != name:
                    old.unlink(missing_ok=True)

    def _tensors(self, name: str, sha256: str) -> dict[str, Tensor]:
        path = self.folder / name
        try:
            found = _digest_file(path)
        except OSError as cause:
            raise self._damaged(path, f"it cannot be read ({cause})") from cause
        if found != sha256:
            raise self._damaged(path, "its content does not match its recorded sha256")
        return load_file(path)

    def _damaged(self, path: Path, what: str) -> WorkspaceError:
        return WorkspaceError(
            f"`{path}` is damaged: {what}. Put back the file that was written, or delete the "
            f"folder `{self.folder}` and give the same command again: this training then starts "
            "from its first epoch, everything else is kept"
        )


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # The format refuses two names for one memory; a copy of the second reads the same.
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        start = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if start in seen else tensor
        seen.add(start)
    return apart


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _changes(name: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            text
            for key in sorted(old.keys() | new.keys())
            for text in _changes(f"{name}.{key}" if name else key, old.get(key), new.get(key))
        ]
    if old == new:
        return []
    long = any(isinstance(value, str) and len(value) > 16 for value in (old, new))
    return [f"the {name}" if long else f"{name} ({old!r} -> {new!r})"]
