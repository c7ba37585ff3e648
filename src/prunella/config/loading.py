"""Read the settings: the file, what is typed over it, and what is wrong with them."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prunella.config.keys import keys, nearest
from prunella.config.sections import Config
from prunella.config.words import value_of
from prunella.errors import ConfigError


def load(file: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read the settings.

    Paths in the file (`task.spec`, `run.folder`) are relative to the file, those in `overrides` to
    the current folder.

    Args:
        file: A TOML file; None takes the defaults.
        overrides: Values by "section.key", stronger than the file's. Text stays as it is where the
            setting is text, and is read as TOML elsewhere ("0.5", "true", "[0.1, 0.2]").

    Raises:
        ConfigError: The file cannot be read, a key is unknown, or a value outside what it may be.
    """
    data = {} if file is None else _read(file)
    for key, value in (overrides or {}).items():
        _set(data, key, value_of(key, value) if isinstance(value, str) else value)
    source = (
        "the options" if file is None else f"`{file}` and the options" if overrides else f"`{file}`"
    )
    try:
        return Config.model_validate(data)
    except ValidationError as cause:
        raise ConfigError(_explain(cause, source)) from cause


def _read(file: Path) -> dict[str, Any]:
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(
            f"there is no file `{file}`. Write a sample with `prunella init {file.name}`"
        ) from None
    except (OSError, UnicodeDecodeError) as cause:
        raise ConfigError(f"cannot read `{file}`: {cause}") from cause
    except (ValueError, RecursionError) as cause:
        raise ConfigError(f"`{file}` is not TOML: {cause}. Correct that line") from cause
    task, run = data.get("task"), data.get("run")
    if isinstance(task, dict) and str(task.get("spec", "")).endswith(".py"):
        task["spec"] = _beside(file, task["spec"])
    if isinstance(run, dict) and isinstance(run.get("folder"), str) and run["folder"]:
        run["folder"] = _beside(file, run["folder"])
    return data


def _beside(file: Path, path: str) -> str:
    return path if path.startswith("~") else str(file.parent / path)


def _set(data: dict[str, Any], key: str, value: object) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = data.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"`{section}` is a section, not a value; it holds {inner!r}")
        data = inner
    data[last] = value


def _explain(cause: ValidationError, source: str) -> str:
    known = [name for name, _, _ in keys()]
    lines: dict[str, str] = {}
    for error in cause.errors():
        key = ".".join(str(part) for part in error["loc"] if isinstance(part, str))
        # A setting of several types reports each of them, below itself; the first says enough.
        key = next((name for name in known if key.startswith(f"{name}.")), key)
        if error["type"] == "extra_forbidden":
            wanted = known if "." in key else list(Config.model_fields)
            lines.setdefault(key, f"there is no setting `{key}`{nearest(key, wanted)}")
            continue
        rule = error["msg"].removeprefix("Value error, ")
        own = error["type"] == "value_error"
        got = "" if own or isinstance(error["input"], dict) else f", got {error['input']!r}"
        place = f"`{key}`: " if key else ""  # what concerns several sections has none
        lines.setdefault(key, f"{place}{rule[0].lower()}{rule[1:]}{got}")
    return f"in {source}: " + "; ".join(lines.values())
