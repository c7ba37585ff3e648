"""Tell functions apart by what they do: their code, what it calls, and the values it holds.

Code is bytecode, so that comments, places and names of local variables make no difference.
"""

import dis
import functools
import hashlib
import inspect
import os
import re
import sys
import sysconfig
import tempfile
from argparse import Namespace
from collections.abc import Iterable, Mapping
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import Path
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunella.tasks._hashing import absorb

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))
_VALUES = (re.Pattern, torch.dtype, Decimal, Fraction, range, slice, set, frozenset)
_HOLDERS = (SimpleNamespace, Namespace)
_WRAPPERS = (staticmethod, classmethod, functools.cached_property)

_LARGEST = 1 << 12
"""So many items make a container data, which have a fingerprint of their own."""

_DEEPEST = 60
_LOOKUPS = {"LOAD_GLOBAL", "LOAD_NAME"}

# What a class has besides what was written, and what says where or in which words it was.
_INCIDENTAL = {
    *("__dict__", "__weakref__", "__module__", "__qualname__", "__name__", "__doc__"),
    *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__"),
    *("__firstlineno__", "__static_attributes__", "_abc_impl"),
}

_PLACES = {sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
_PLACES.add(str(Path(__file__).parents[1]))
_LIBRARIES = tuple(os.path.realpath(place) + os.sep for place in sorted(_PLACES))


def code_of(*functions: Any, values: bool = True) -> str:
    """Hash what functions do: the same in every process, and another when they are changed.

    That is the bytecode of the user's own functions and classes and of those that they name, with
    the values they hold: defaults, closures, constants of the file, attributes of callable objects.
    What a library defines is told by its name. What is neither code nor a value (an open file, a
    logger) is told by its type, as are paths in the folder for temporary files, which are others
    at every start, and the parameters of modules, which may be drawn.

    It is to be asked before the functions are used: they may count or collect.

    Args:
        functions: Callables of any kind, or None.
        values: Whether the values count too; without, the answer is the same after they were used.
    """
    walk = _Walk(values)
    for function in functions:
        walk.take(function, 0)
    return walk.hasher.hexdigest()


class _Walk:
    """One way through functions and what they hold; nothing is met twice."""

    def __init__(self, values: bool) -> None:
        self.hasher = hashlib.sha256()
        self._values = values
        # With the value, held: another would get the place of one that is gone.
        self._seen: dict[int, tuple[int, Any]] = {}
        self._asked: set[tuple[ModuleType, str]] = set()

    def take(self, value: Any, depth: int) -> None:
        """Take in anything that a function is, calls or holds."""
        if isinstance(value, _PLAIN) and type(value) in _PLAIN:
            self._plain(value)
        elif isinstance(value, Tensor | np.ndarray | np.generic):
            self._numbers(value)
        elif type(value) in (tuple, frozenset) and depth < _DEEPEST:
            self._part(value, depth + 1)  # equal ones may be one and the same, or not
        elif id(value) in self._seen:
            self._tell("again", str(self._seen[id(value)][0]))
        elif self._meet(value) and depth < _DEEPEST:
            self._part(value, depth + 1)

    def _meet(self, value: Any) -> bool:
        return self._seen.setdefault(id(value), (len(self._seen), value)) is not None

    def _part(self, value: Any, depth: int) -> None:
        if isinstance(value, FunctionType):
            self._function(value, depth)
        elif isinstance(value, MethodType):
            self._all((value.__func__, value.__self__), depth)
        elif isinstance(value, BuiltinFunctionType):
            self._tell("builtin", str(value.__module__), value.__qualname__)
        elif isinstance(value, functools.partial):
            self._all((value.func, value.args, value.keywords), depth)
        elif isinstance(value, _WRAPPERS):
            self.take(value.func if hasattr(value, "func") else value.__func__, depth)
        elif isinstance(value, property):
            self._all((value.fget, value.fset, value.fdel), depth)
        elif isinstance(value, ModuleType):
            self._tell("module", value.__name__.rpartition(".")[2])
        elif isinstance(value, type):
            self._class(value, depth)
        elif isinstance(value, Enum):
            self._tell("member", type(value).__qualname__, value.name)
        elif isinstance(value, CodeType):
            self._code(value, depth)
        else:
            try:
                self._object(value, depth)
            except Exception:  # noqa: BLE001  a user's class may raise anything
                self._tell("unreadable")

    def _function(self, function: FunctionType, depth: int) -> None:
        foreign = _is_library(function.__code__.co_filename)
        if foreign:
            # Its `__module__` may be that of the function it wraps.
            file = Path(function.__code__.co_filename).name
            self._tell("library", file, function.__code__.co_name)
        else:
            self._code(function.__code__, depth)
        held = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
        held += [function.__defaults__, function.__kwdefaults__]
        held += [part for name, part in vars(function).items() if _counts(name, part)]
        # Of what wraps a function of the user's only that is of interest.
        self._all([part for part in held if callable(part)] if foreign else held, depth)
        if not foreign:
            loaded, named = _names(function.__code__)
            self._named(loaded, function.__globals__, named, depth)

    def _named(
        self, names: Iterable[str], known: Mapping[str, Any], within: Iterable[str], depth: int
    ) -> None:
        """Take in what names mean; of modules of the user's own, what is named `within` them."""
        for name in names:
            if name not in known or name.startswith("__"):
                continue
            value = known[name]
            self._tell("name", name)
            if isinstance(value, ModuleType) and not _is_foreign(value.__name__):
                # Each function may ask a module for something else.
                new = [part for part in within if (value, part) not in self._asked]
                self._asked.update((value, part) for part in new)
                self._named(new, vars(value), within, depth + 1)
            else:
                self.take(value, depth)

    def _code(self, code: CodeType, depth: int) -> None:
        self._tell("code", str(code.co_argcount), *code.co_names)
        absorb(self.hasher.update, code.co_code)
        absorb(self.hasher.update, code.co_exceptiontable)
        documented = _is_documented(code)
        for index, constant in enumerate(code.co_consts):
            if isinstance(constant, CodeType):
                self._code(constant, depth)
            elif index or not documented:
                absorb(self.hasher.update, constant)

    def _class(self, kind: type, depth: int) -> None:
        if _is_foreign(kind.__module__):
            self._tell("library", kind.__module__, kind.__qualname__)
            return
        self._tell("class", kind.__qualname__)
        self._all(kind.__bases__, depth)
        self._items(vars(kind), depth)

    def _object(self, value: Any, depth: int) -> None:
        kind = type(value)
        self.take(kind, depth)
        if isinstance(value, _VALUES):
            if self._values:
                told = value.pattern if isinstance(value, re.Pattern) else value
                absorb(self.hasher.update, told)
            return
        if isinstance(value, Mapping | list | tuple) and value is not os.environ:
            self._container(value, depth)
        if not _is_foreign(kind.__module__) or callable(value) or isinstance(value, _HOLDERS):
            parts = _attributes(value)
            self._items(parts, depth)
            if not parts and self._values and callable(value) and _is_foreign(kind.__module__):
                absorb(self.hasher.update, value)  # as it would be pickled, `itemgetter(1)` say

    def _container(self, value: Any, depth: int) -> None:
        if not self._values and not isinstance(value, tuple):
            return  # it may have been filled since
        self._tell("of", str(len(value)))
        if len(value) <= _LARGEST:
            pairs = value.items() if isinstance(value, Mapping) else ((None, one) for one in value)
            for key, one in pairs:
                self._all((key, one), depth)

    def _items(self, parts: Mapping[str, Any], depth: int) -> None:
        for name in sorted(name for name, part in parts.items() if _counts(name, part)):
            if not self._values and not _is_code(parts[name]):
                continue  # it may have come since
            self._tell("name", name)
            self.take(parts[name], depth)

    def _all(self, values: Iterable[Any], depth: int) -> None:
        for value in values:
            self.take(value, depth)

    def _plain(self, value: Any) -> None:
        if not self._values:
            return
        if isinstance(value, str) and value.startswith(tempfile.gettempdir() + os.sep):
            value = ""
        absorb(self.hasher.update, value)

    def _numbers(self, value: Any) -> None:
        if not self._values:
            self._tell(type(value).__qualname__)
        elif isinstance(value, nn.Parameter):
            self._tell("parameter", *map(str, value.shape))
        else:
            absorb(self.hasher.update, value)

    def _tell(self, *words: str) -> None:
        absorb(self.hasher.update, words)


def _names(code: CodeType) -> tuple[dict[str, None], dict[str, None]]:
    """List the names that code looks up in its file, and all it names, attributes too; each once.

    That of functions inside it is code of its own.
    """
    steps = (step for step in dis.get_instructions(code) if step.opname in _LOOKUPS)
    loaded, named = dict.fromkeys(step.argval for step in steps), dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            inner = _names(constant)
            loaded, named = loaded | inner[0], named | inner[1]
    return loaded, named


def _is_documented(code: CodeType) -> bool:
    """Say whether the first constant is what documents a function."""
    if sys.version_info >= (3, 14):
        return bool(code.co_flags & inspect.CO_HAS_DOCSTRING)
    named = not code.co_name.startswith("<")  # no lambda, nor what a comprehension runs
    return named and isinstance(next(iter(code.co_consts), None), str)


def _attributes(value: Any) -> dict[str, Any]:
    listed = [vars(kind).get("__slots__", ()) for kind in type(value).__mro__]
    slots = [name for names in listed for name in ((names,) if isinstance(names, str) else names)]
    found = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    found |= getattr(value, "__dict__", {})
    if isinstance(value, nn.Module):
        found.pop("training", None)  # a mode that it is put into
    return found


def _counts(name: Any, value: Any) -> bool:
    """Say whether an attribute is the user's; what frameworks keep in classes is not."""
    if not isinstance(name, str) or name in _INCIDENTAL:
        return False
    return not name.startswith("__") or _is_code(value)


def _is_code(value: Any) -> bool:
    return callable(value) or isinstance(value, (*_WRAPPERS, property))


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _is_foreign(module: str) -> bool:
    """Say whether a module is a library's, by its name; what was typed in is not."""
    if module == "__main__":
        return False
    if module.partition(".")[0] == "prunella":
        return True
    found = sys.modules.get(module)
    # A folder that is no package has but a path.
    places = [getattr(found, "__file__", None), *getattr(found, "__path__", ())]
    return not any(place is not None and not _is_library(place) for place in places)


def _is_library(file: str) -> bool:
    if file.startswith("<frozen "):
        return True
    place = os.path.realpath(file)
    return place.startswith(_LIBRARIES) or "site-packages" in place
