"""The containers of a model's inputs and outputs, apart from the tensors in them."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunella.errors import ConfigError
from prunella.graph import Ref

_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, type(None))


@dataclass(frozen=True, slots=True)
class Shell:
    """A tuple, list, mapping or dataclass of the class `kind` with these parts."""

    kind: type
    parts: tuple[Any, ...] | Mapping[Any, Any]


@dataclass(frozen=True, slots=True)
class Opaque:
    """Stands for an object of a class that cannot be looked into (a cache, say)."""

    kind: type


def emptied(value: Any, names: Iterator[str]) -> Any:
    """Return what holds the tensors of `value`, with a `Ref` of the next name for each.

    They come in the order of `outputs.tensors_in`.
    """
    if isinstance(value, Tensor):
        return Ref(next(names))
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Mapping):
        return Shell(type(value), {key: emptied(part, names) for key, part in value.items()})
    if isinstance(value, tuple | list):
        return Shell(type(value), tuple(emptied(part, names) for part in value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (field.name for field in dataclasses.fields(value))
        return Shell(type(value), {name: emptied(getattr(value, name), names) for name in fields})
    return Opaque(type(value))


def renamed(template: Any, names: Mapping[str, str]) -> Any:
    """Return an emptied value with other names in it."""
    if isinstance(template, Ref):
        return Ref(names[template.name])
    if not isinstance(template, Shell):
        return template
    if isinstance(template.parts, Mapping):
        parts = {key: renamed(part, names) for key, part in template.parts.items()}
        return Shell(template.kind, parts)
    return Shell(template.kind, tuple(renamed(part, names) for part in template.parts))


def filled(template: Any, tensors: Mapping[str, Any]) -> Any:
    """Return the value of which `template` is the emptied form, with these tensors in it.

    What cannot be looked into comes back as None.
    """
    if isinstance(template, Ref):
        return tensors[template.name]
    if isinstance(template, Opaque):
        return None
    if not isinstance(template, Shell):
        return template
    if isinstance(template.parts, Mapping):
        parts = {key: filled(part, tensors) for key, part in template.parts.items()}
        by_name = dataclasses.is_dataclass(template.kind)
        return template.kind(**parts) if by_name else template.kind(parts)
    items = [filled(part, tensors) for part in template.parts]
    return template.kind(*items) if hasattr(template.kind, "_fields") else template.kind(items)


def names_in(template: Any) -> Iterator[str]:
    """Yield the names of the tensors of an emptied value."""
    yield from (leaf.name for leaf in _leaves(template) if isinstance(leaf, Ref))


def opaque_in(template: Any) -> Iterator[type]:
    """Yield the classes of what an emptied value comes back without."""
    yield from (leaf.kind for leaf in _leaves(template) if isinstance(leaf, Opaque))


def _leaves(template: Any) -> Iterator[Any]:
    if isinstance(template, Shell):
        parts = template.parts
        for part in parts.values() if isinstance(parts, Mapping) else parts:
            yield from _leaves(part)
    else:
        yield template


def matched(wanted: Any, given: Any, where: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of an argument by name.

    Args:
        wanted: The argument when the model was captured, with a `Ref` in place of each tensor.
        given: The argument now.
        where: What it is called, for messages.

    Raises:
        ConfigError: They differ in more than the tensors' elements.
    """
    if isinstance(wanted, Ref):
        if not isinstance(given, Tensor):
            raise _other(where, "a tensor", given)
        yield wanted.name, given
    elif isinstance(wanted, Mapping):
        if not isinstance(given, Mapping) or set(wanted) != set(given):
            raise _other(where, f"a mapping with the keys {list(wanted)}", given)
        for key, part in wanted.items():
            yield from matched(part, given[key], f"{where}[{key!r}]")
    elif isinstance(wanted, tuple | list):
        if not isinstance(given, Sequence) or len(given) != len(wanted):
            raise _other(where, f"a sequence of {len(wanted)}", given)
        for i, part in enumerate(wanted):
            yield from matched(part, given[i], f"{where}[{i}]")
    elif isinstance(given, Tensor) or not (
        wanted == given if isinstance(wanted, _PLAIN) else type(wanted) is type(given)
    ):
        raise _other(where, repr(wanted), given)


def _other(where: str, wanted: str, given: Any) -> ConfigError:
    found = f"a tensor {tuple(given.shape)}" if isinstance(given, Tensor) else repr(given)
    return ConfigError(
        f"`{where}` was {wanted} when the model was captured, now it is {found}. A rewritten model "
        "takes the arguments it was captured with: prune with example inputs like those you need"
    )
