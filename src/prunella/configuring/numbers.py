"""Numbers in the dict of a config."""

from collections.abc import Iterator
from typing import Any

Place = tuple[str | int, ...]
"""Where a number stands: ("vision_config", "hidden_size")."""


def leaves(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """List what a dict holds that is no container, with its place."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*place, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from leaves(item, (*place, index))
    else:
        yield place, value


def holders(written: dict[str, Any], place: Place = ()) -> Iterator[Place]:
    """List where configs stand: the whole, and those nested in it."""
    yield place
    for key, value in written.items():
        if isinstance(value, dict) and "model_type" in value:
            yield from holders(value, (*place, key))


def is_count(value: Any) -> bool:
    """Say whether a value may be a number of things."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def get(written: Any, place: Place) -> Any:
    """Return what stands at a place."""
    for key in place:
        written = written[key]
    return written


def put(written: Any, place: Place, value: Any) -> None:
    """Write to a place, in place but where a tuple stands there."""
    holder = get(written, place[:-1])
    if isinstance(holder, tuple):  # no config is saved with tuples: JSON has none
        parts = list(holder)
        parts[int(place[-1])] = value
        put(written, place[:-1], parts)
    else:
        holder[place[-1]] = value


def spell(place: Place) -> str:
    """Write a place for a person."""
    return f"`{'.'.join(map(str, place))}`"
