"""The files: rows as JSON after every network, and a page for people."""

import json
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.zoo.catalogue import Collection
from benchmarks.zoo.page import Part, page
from benchmarks.zoo.row import Row
from prunella.files import replacing


def read(folder: Path, collection: Collection) -> list[Row]:
    """Read the rows of an earlier run; none where there was no run."""
    return _read(folder, collection).rows


def _read(folder: Path, collection: Collection) -> Part:
    path = folder / f"{collection.name}.json"
    if not path.exists():
        return Part(collection, "", [])
    record = json.loads(path.read_text())
    rows = [Row.from_json(row) for row in record["rows"] if "status" in row]
    return Part(collection, record.get("versions", ""), rows)


def write(folder: Path, collection: Collection, rows: Iterable[Row]) -> None:
    """Write the rows of a collection in one step: a stopped run keeps what it has."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"versions": _versions(collection), "rows": [row.to_json() for row in rows]}
    with replacing(folder / f"{collection.name}.json") as fresh:
        fresh.write_text(json.dumps(record, indent=1) + "\n")


def write_page(folder: Path, collections: Sequence[Collection], path: Path) -> None:
    """Write the page of some collections out of what the folder has of them."""
    parts = [_read(folder, collection) for collection in collections]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as fresh:
        fresh.write_text(page([part for part in parts if part.rows]))


def _versions(collection: Collection) -> str:
    packages = ("torch", *collection.packages)
    python = f"Python {platform.python_version()}"
    return ", ".join([python, *(f"{name} {version(name)}" for name in packages)])
