"""What a benchmark writes: rows as JSON beside a page for people, each put in place in one step."""

import json
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from prunella.files import replacing

Row = dict[str, Any]


def versions(packages: tuple[str, ...]) -> list[str]:
    """Name what figures were made with; a package that is not installed is left out."""
    found = [f"Python {platform.python_version()}"]
    for name in packages:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found


def write(
    rows: list[Row], out: Path, packages: tuple[str, ...], page: Callable[[list[Row]], str]
) -> None:
    """Write `out` with the suffixes `.json` and `.md`, a row a line."""
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    record = f'{{"versions": {json.dumps(versions(packages))},\n "rows": [\n{lines}\n]}}\n'
    for suffix, text in ((".json", record), (".md", page(rows))):
        with replacing(out.with_suffix(suffix)) as fresh:
            fresh.write_text(text)


def read(out: Path) -> list[Row]:
    """Return the rows that an earlier run wrote, but those that failed."""
    path = out.with_suffix(".json")
    rows: list[Row] = json.loads(path.read_text())["rows"] if path.exists() else []
    return [row for row in rows if "failure" not in row]
