"""The kinds of values that settings take, and how a value is written."""

import json
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BeforeValidator, Field

from prunella.files import expanded


def toml(value: object) -> str:
    """Write a value as TOML has it, on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    return json.dumps(value)


def is_list(kind: object) -> bool:
    """Say whether a setting takes several values."""
    return get_origin(kind) is tuple or any(map(is_list, get_args(kind)))


def plain_types(kind: object) -> set[object]:
    """List the plain types that a setting is made of, whether one of them, a choice or a list."""
    if get_origin(kind) is Literal:
        return {type(value) for value in get_args(kind)}
    if get_origin(kind) in (Union, UnionType, tuple, Annotated):
        parts = get_args(kind)[:1] if get_origin(kind) is Annotated else get_args(kind)
        return {plain for part in parts for plain in plain_types(part)} - {NoneType, ...}
    return {kind}


Share = Annotated[float, Field(gt=0, le=1)]
Removed = Annotated[float, Field(gt=0, lt=1)]
Bound = float | int | str | None
LARGE = 1e6  # beyond all sense, and far below where numbers of 32 bits end


def listed(value: object) -> object:
    """Take one value as a list of one, and "0.01,0.1", which one types, as a list of two."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return [value] if isinstance(value, int | float) else value


def single(value: object) -> object:
    """Take one text as a list of one; a name or regex may hold a comma, so it stays whole."""
    return [value] if isinstance(value, str) else value


def _at_home(value: str) -> str:
    if "\0" in value:
        raise ValueError(f"there is no such place, got {value!r}")
    return str(expanded(value)) if value.startswith("~") else value


Place = Annotated[str, AfterValidator(_at_home)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(listed)]
Ratios = Annotated[tuple[Removed, ...], BeforeValidator(listed)]
Decay = Literal["cosine", "linear", "step", "constant"]
