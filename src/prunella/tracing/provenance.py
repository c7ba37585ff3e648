"""Find out where the numbers in a model's calls come from, while the model is being captured.

A captured graph shows `x.view(1, 196, 12, 64)`. Whether the 12 was read from `self.num_heads`,
computed from a shape, or stands in the code as a literal decides whether the model's own code runs
with fewer channels, and which attribute has to change with them. So while the model runs, every
integer attribute, and every size of a tensor, is an `int` that remembers its origin and survives
arithmetic; a function mode sees each call of the framework and notes the origins of its integer
arguments on the nodes that the call adds to the graph.

Origins are lost where the code leaves integers (`int(x * 0.5)`, numpy); such numbers look like
literals.
"""

import dataclasses
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import reduce
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental import proxy_tensor
from torch.overrides import TorchFunctionMode

from prunella.graph import Attr, Calc, Dim, Path, Size
from prunella.model.blame import calling_line
from prunella.tracing.constants import node_of

_NOTE, _NAME, _LINE = "prunella_sizes", "prunella_name", "prunella_line"

_NO_SIZES = {"dim", "dims", "dim0", "dim1", "step", "start_dim", "end_dim", "stride", "dilation"}
"""Integer arguments that never count channels; kept out, lest they be taken for one that does."""


class Tracked(int):
    """An integer that remembers where it came from."""

    origin: Size
    equal: list[tuple[Size, Size]] | None

    def __new__(
        cls, value: int, origin: Size, equal: list[tuple[Size, Size]] | None = None
    ) -> "Tracked":
        """Make one; `equal` collects the comparisons that were found to hold."""
        made = super().__new__(cls, value)
        made.origin, made.equal = origin, equal
        return made

    def __eq__(self, other: object) -> bool:
        same = int.__eq__(self, other) is True
        if same and isinstance(other, Tracked) and self.equal is not None:
            self.equal.append((self.origin, other.origin))
        return same

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __neg__(self) -> "Tracked":
        return Tracked(-int(self), Calc("-", 0, self.origin), self.equal)

    __hash__ = int.__hash__

    def __deepcopy__(self, memo: object) -> "Tracked":
        return self

    def __reduce__(self) -> Any:
        return int, (int(self),)


def _calculating(symbol: str, function: Callable[[int, int], int], *, swapped: bool) -> Any:
    def calculate(self: Tracked, other: Any) -> Any:
        if not isinstance(other, int) or isinstance(other, bool):
            return NotImplemented
        a, b = (other, self) if swapped else (self, other)
        value = function(int.__index__(a), int.__index__(b))
        return Tracked(value, Calc(symbol, origin_of(a), origin_of(b)), self.equal)

    return calculate


for _symbol, _function in {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv,
    "%": operator.mod,
}.items():  # fmt: skip
    _name = _function.__name__
    setattr(Tracked, f"__{_name}__", _calculating(_symbol, _function, swapped=False))
    setattr(Tracked, f"__r{_name}__", _calculating(_symbol, _function, swapped=True))


def origin_of(number: int) -> Size:
    """Return where a number comes from; a number that nobody tracked stands in the code."""
    return number.origin if isinstance(number, Tracked) else int(number)


def noted(node: fx.Node) -> Mapping[Path, Size]:
    """Return the origins noted on a captured node, `Dim` naming tensors as while capturing."""
    found: Mapping[Path, Size] = node.meta.get(_NOTE, {})
    return found


def line_of(node: fx.Node) -> str:
    """Return the line of the model's code that made a captured call with integer arguments."""
    return str(node.meta.get(_LINE, ""))


def name_while_capturing(node: fx.Node) -> str:
    """Return the name a node had while it was captured."""
    return str(node.meta.get(_NAME, node.name))


@contextmanager
def observing(model: nn.Module, equal: list[tuple[Size, Size]]) -> Iterator[None]:
    """Note the origins of numbers on the nodes captured meanwhile.

    To be entered while the capture runs. The model's attributes are tracked for that time.

    Args:
        model: The model whose attributes to track.
        equal: Takes the pairs of numbers that the code compared and found equal.
    """
    with ExitStack() as stack:
        stack.enter_context(_transparent())
        stack.callback(_restore, _track_attributes(model, equal))
        stack.enter_context(_Observer(equal))
        yield


@contextmanager
def _transparent() -> Iterator[None]:
    """Let the mode see what composite functions such as multi-head attention call inside.

    They hand the whole call to the mode first; told that no mode is there, they run their body.
    """
    with ExitStack() as stack:
        for name in (
            "has_torch_function",
            "has_torch_function_unary",
            "has_torch_function_variadic",
        ):
            stack.enter_context(mock.patch.object(torch.nn.functional, name, new=_never))
        yield


def _never(*_: object) -> bool:
    return False


_Restore = list[tuple[dict[str, Any], str, Any]]


def _track_attributes(model: nn.Module, equal: list[tuple[Size, Size]]) -> _Restore:
    undo: _Restore = []
    seen: set[int] = set()
    for name, module in model.named_modules():
        _track(vars(module), name, "", equal, undo, seen)
    return undo


def _restore(undo: _Restore) -> None:
    for holder, key, value in undo:
        holder[key] = value


def _track(
    holder: dict[str, Any],
    module: str,
    prefix: str,
    equal: list[tuple[Size, Size]],
    undo: _Restore,
    seen: set[int],
) -> None:
    for key, value in list(holder.items()):
        tracked = _tracked(value, module, prefix + key, equal)
        if tracked is not None:
            undo.append((holder, key, value))
            holder[key] = tracked
        elif _is_settings(value) and id(value) not in seen:
            seen.add(id(value))  # one object shared by many modules has one name
            _track(vars(value), module, f"{prefix}{key}.", equal, undo, seen)


def _tracked(value: Any, module: str, name: str, equal: list[tuple[Size, Size]]) -> Any:
    if type(value) is int:
        return Tracked(value, Attr(module, name, value), equal)
    if type(value) in (tuple, list) and value and all(type(n) is int for n in value):
        return type(value)(
            Tracked(n, Attr(module, f"{name}[{i}]", n), equal) for i, n in enumerate(value)
        )
    return None


def _is_settings(value: Any) -> bool:
    """Say whether an object holds a model's settings, such as the config of a transformer."""
    return (
        hasattr(value, "__dict__")
        and not isinstance(value, type | nn.Module)
        and (
            isinstance(value, SimpleNamespace)
            or dataclasses.is_dataclass(value)
            or type(value).__name__.endswith(("Config", "Cfg"))
        )
    )


class _Observer(TorchFunctionMode):
    """Sees every call: hands out tracked sizes, notes the origins of integer arguments."""

    def __init__(self, equal: list[tuple[Size, Size]]) -> None:
        super().__init__()
        self._equal = equal

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        capture = proxy_tensor.get_proxy_mode()
        if capture is None:
            return func(*_plain(args), **_plain(kwargs))
        if func in _SHAPES:
            return self._sizes(capture.tracer, func, args, kwargs)
        graph = capture.tracer.graph
        last = graph._root._prev
        made = func(*_plain(args), **_plain(kwargs))
        node = last._next
        numbers = list(_numbers((args, kwargs)))
        line = calling_line() if numbers else ""
        while node is not graph._root:
            node.meta.setdefault(_NAME, node.name)
            if node.op == "call_function" and numbers:
                node.meta[_NOTE] = _align(node, numbers)
                node.meta[_LINE] = line
            node = node._next
        return made

    def _sizes(self, tracer: Any, func: Any, args: Any, kwargs: Any) -> Any:
        found = func(*_plain(args), **_plain(kwargs))
        tensor = args[0]
        node = node_of(tracer, tensor)
        if node is None:
            return found
        node.meta.setdefault(_NAME, node.name)
        dims = [Tracked(n, Dim(node.name, d), self._equal) for d, n in enumerate(tensor.shape)]
        if func in _COUNTS:
            return reduce(operator.mul, dims) if dims else found
        if isinstance(found, int):  # x.size(dim)
            dim = int(args[1] if len(args) > 1 else kwargs["dim"]) % tensor.ndim
            return dims[dim]
        return torch.Size(dims)


_COUNTS = {Tensor.numel, Tensor.nelement}
_SHAPES = {Tensor.shape.__get__, Tensor.size, *_COUNTS}  # type: ignore[attr-defined]


def _plain(value: Any) -> Any:
    """Replace tracked integers by plain ones."""
    if isinstance(value, Tracked):
        return int.__index__(value)
    if type(value) in (tuple, list):
        return type(value)(_plain(item) for item in value)
    if isinstance(value, torch.Size):
        return torch.Size(_plain(item) for item in tuple(value))
    if isinstance(value, slice):
        return slice(_plain(value.start), _plain(value.stop), _plain(value.step))
    if type(value) is dict:
        return {key: _plain(item) for key, item in value.items()}
    return value


def _numbers(value: Any) -> Iterator[int]:
    """Yield the integers among the arguments of a call, in order."""
    if isinstance(value, int) and not isinstance(value, bool):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, slice):
        yield from _numbers((value.start, value.stop, value.step))
    elif isinstance(value, dict):
        yield from _numbers(tuple(value.values()))


def _align(node: fx.Node, numbers: list[int]) -> dict[Path, Size]:
    """Pair the integers of a node with those of the call that made it: equal ones, in order."""
    waiting = list(numbers)
    found: dict[Path, Size] = {}
    for path, value in _paths(node):
        for i, number in enumerate(waiting):
            if int.__eq__(number, value) is True:
                found[path] = origin_of(number)
                del waiting[: i + 1]
                break
    return found


def _paths(node: fx.Node) -> Iterator[tuple[Path, int]]:
    schema = getattr(node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema else []
    for i, value in enumerate(node.args):
        if i >= len(names) or names[i] not in _NO_SIZES:
            yield from _within((i,), value)
    for key, value in node.kwargs.items():
        if key not in _NO_SIZES:
            yield from _within((key,), value)


def _within(path: Path, value: Any) -> Iterator[tuple[Path, int]]:
    if isinstance(value, int) and not isinstance(value, bool):
        yield path, value
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _within((*path, i), item)
