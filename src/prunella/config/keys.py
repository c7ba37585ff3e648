"""The settings by name, "section.key": which there are, which are changed, which was meant."""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from prunella.config.kinds import plain_types, toml
from prunella.config.sections import Config
from prunella.errors import ConfigError


def keys() -> Iterator[tuple[str, Any, str]]:
    """List every setting: "section.key", its default, what it means."""
    for section, outer in Config.model_fields.items():
        kind = outer.annotation
        assert isinstance(kind, type), f"section {section} is not a class"
        assert issubclass(kind, BaseModel), f"section {section} is not a model"
        for key, inner in kind.model_fields.items():
            default = inner.get_default(call_default_factory=True)
            yield f"{section}.{key}", default, (inner.description or "").replace("\n", " ")


def changed(config: Config) -> dict[str, str]:
    """List the settings that differ from the defaults, as they would be typed."""
    typed: dict[str, str] = {}
    for name, default, _ in keys():
        section, key = name.split(".")
        value = getattr(getattr(config, section), key)
        if name == "task.options":
            typed |= {f"{name}.{option}": as_typed(found) for option, found in value.items()}
        elif value != default:
            typed[name] = as_typed(value)
    return typed


def as_typed(value: object) -> str:
    """Write a value as one types it after its setting."""
    return value if isinstance(value, str) else toml(value)


def kind_of(key: str) -> object:
    """Give the type of a setting, None where there is no such setting."""
    section, _, name = key.partition(".")
    outer = Config.model_fields.get(section)
    inner = getattr(outer and outer.annotation, "model_fields", {}).get(name)
    return None if inner is None else inner.annotation


def is_switch(key: str) -> bool:
    """Say whether a setting is on or off."""
    return plain_types(kind_of(key)) == {bool}


def check_key(key: str) -> None:
    """See that there is such a setting.

    Raises:
        ConfigError: There is none; the message names the nearest.
    """
    known = [name for name, _, _ in keys()]
    if key in known or key.startswith("task.options."):
        return
    raise ConfigError(f"there is no setting `{key}`{nearest(key, known)}")


def nearest(key: str, known: Sequence[str]) -> str:
    """Say which of the known names was meant, as the end of a message."""
    last = key.rpartition(".")[2]
    same = [name for name in known if name.rpartition(".")[2] == last]
    near = same or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not near:
        shorts = {name.rpartition(".")[2]: name for name in known}
        near = [shorts[name] for name in difflib.get_close_matches(last, list(shorts), n=1)]
    if near:
        return f". Did you mean `{near[0]}`?"
    return f". The sections are {', '.join(Config.model_fields)}; `prunella init` writes all keys"
