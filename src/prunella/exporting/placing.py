"""Put an exported file, and what lies beside it, in its place once it is found good."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prunella.errors import WorkspaceError
from prunella.files import UNFINISHED, sync_folder


@contextmanager
def placed(path: Path) -> Iterator[Path]:
    """Yield a name of the same kind in a folder of its own beside `path`.

    On leaving, all files of that folder go where `path` is, the file itself last. Where the body
    fails, nothing is left behind and older files stay.

    Raises:
        WorkspaceError: There is no room, or no right to write there.
    """
    folder: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=path.parent))
        yield folder / path.name
        fresh = sorted(folder.iterdir(), key=lambda file: file.name == path.name)
        for old in beside(path):
            if old.name not in {file.name for file in fresh}:
                old.unlink()
        for file in fresh:
            file.replace(path.parent / file.name)
        sync_folder(path.parent)
    except OSError as cause:
        raise WorkspaceError(
            f"`{path}` cannot be written: {cause}. Free some space or choose another place"
        ) from cause
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def beside(path: Path) -> list[Path]:
    """List the files that belong to an exported one: its large tensors, or all of OpenVINO's."""
    candidates = [path.with_name(path.name + ".data")]
    if path.suffix == ".xml":
        candidates.append(path.with_suffix(".bin"))
    return [file for file in candidates if file.is_file()]
