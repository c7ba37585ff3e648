"""Settings as they are typed on a command line."""

import tomllib
from collections.abc import Sequence
from datetime import date, time

from prunella.config.keys import as_typed, check_key, is_switch, keys, kind_of
from prunella.config.kinds import is_list, plain_types
from prunella.errors import ConfigError

_SWITCHED = ("true", "false", "yes", "no", "on", "off", "1", "0")


def joined(arguments: Sequence[str]) -> list[str]:
    """Write every `--section.key value` as one word, `--section.key=value`; the others stay.

    A switch needs no value; only what looks like one is taken for it.

    Example:
        >>> joined(["digits", "--run.seed", "1", "--finetune.masked", "--quiet"])
        ['digits', '--run.seed=1', '--finetune.masked=true', '--quiet']

    Raises:
        ConfigError: There is no such setting, or its value is missing.
    """
    words: list[str] = []
    rest = list(arguments)
    while rest:
        head, equals, value = rest.pop(0).partition("=")
        if not head.startswith("--") or "." not in head:
            words.append(head + equals + value)
            continue
        key = head[2:].replace("-", "_")
        check_key(key)
        if not equals:
            value = _value(key, rest)
        words.append(f"--{key}={value}")
    return words


def _value(key: str, rest: list[str]) -> str:
    """Take the value of a setting off the words that follow it."""
    follows = bool(rest) and not rest[0].startswith("--")
    if is_switch(key):
        return rest.pop(0) if follows and rest[0].lower() in _SWITCHED else "true"
    if follows:
        return rest.pop(0)
    default, meaning = next(
        ((default, text) for name, default, text in keys() if name == key), (None, "")
    )
    sample = "" if default in (None, "", ()) else f", e.g. `--{key} {as_typed(default)}`"
    raise ConfigError(f"`--{key}` needs a value{sample}. {meaning}".removesuffix(". "))


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """Turn `--section.key value` and `--section.key=value` into a mapping; the last one counts.

    Raises:
        ConfigError: An argument is not of that form, or its value is missing.
    """
    overrides: dict[str, str] = {}
    for word in joined(arguments):
        if not word.startswith("--"):
            raise ConfigError(
                f"do not know what to do with `{word}`. Settings are given as "
                "`--section.key value`, e.g. `--budget.macs 0.5`"
            )
        key, _, value = word[2:].partition("=")
        check_key(key)
        overrides[key] = value
    return overrides


def value_of(key: str, text: str) -> object:
    """Read what was typed after a setting: as it is where that is text, elsewhere as TOML."""
    kind = kind_of(key)
    if plain_types(kind) == {str} and not is_list(kind):
        return text
    try:
        value: object = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # not TOML; or too many digits or brackets
        return text
    if isinstance(value, date | time):  # of a task's option: what is no JSON stays as typed
        return text
    if plain_types(kind) == {str}:  # a list of texts
        listed = isinstance(value, list) and all(isinstance(item, str) for item in value)
        return value if listed else text
    return value
