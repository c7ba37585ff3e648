"""Write a captured graph down as a Python function, with the sizes it is to have."""

import linecache
import math
import operator
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import combinations, count
from math import prod
from typing import Any

import torch
from torch import fx

from prunella.coupling.resizing import Resized, calculate
from prunella.errors import TransformError
from prunella.graph import Attr, Calc, Dim, Node, Path, Ref, Size
from prunella.labels import Shape
from prunella.model.containers import names_in
from prunella.rewriting.following import Second, literal
from prunella.tracing.operators import operator_of

_KNOWN: dict[str, Any] = {
    "getattr": getattr,
    "torch": torch,
    "device": torch.device,
    "inf": math.inf,
    "nan": math.nan,
}
_numbers = count()
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
}


@dataclass(frozen=True)
class Program:
    """A function of a module and of input tensors, as Python code.

    Attributes:
        source: The code: `def forward(self, ...)`, which returns a tuple of tensors.
        inputs: Names of the tensors it takes, in order.
        outputs: Names of those it returns.
        tensors: Qualified names of the parameters and buffers that it reads from the module.
        stuck: The first number, if any, that follows the inputs in a way that could not be told.
    """

    source: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: tuple[str, ...]
    stuck: str = ""

    run: Callable[..., tuple[torch.Tensor, ...]] = field(init=False, repr=False, compare=False)
    """The compiled function; a traceback through it shows its lines."""

    def __post_init__(self) -> None:
        name = f"<prunella {next(_numbers)}>"
        lines = self.source.splitlines(keepends=True)
        linecache.cache[name] = (len(self.source), None, lines, name)
        names = dict(_KNOWN)
        exec(compile(self.source, name, "exec"), names)
        object.__setattr__(self, "run", names["forward"])

    def __deepcopy__(self, memo: object) -> "Program":
        return self

    def __reduce__(self) -> Any:  # a compiled function does not travel
        return Program, tuple(getattr(self, f.name) for f in fields(self) if f.init)


def emit(
    resized: Resized,
    second: Second | None = None,
    *,
    inputs: Mapping[str, str],
    constants: Mapping[str, str],
    device: torch.device,
) -> Program:
    """Write a captured network down in the sizes it is to have.

    Args:
        resized: The network and its sizes.
        second: A capture under other circumstances, which tells what follows them.
        inputs: What to call the inputs, by value name, in the order of the function's arguments.
        constants: Attributes of the module that hold the graph's constants, by value name.
        device: Where the parameters are.
    """
    return _Writer(resized, second, inputs, constants, device).write()


class _Writer:
    def __init__(
        self,
        resized: Resized,
        second: Second | None,
        inputs: Mapping[str, str],
        constants: Mapping[str, str],
        device: torch.device,
    ) -> None:
        self._resized = resized
        self._graph = resized.flow.groups.graph
        self._second = second
        self._others = second.nodes if second else {}
        self._inputs = inputs
        self._constants = constants
        self._device = device
        self._code = fx.Graph()
        self._made: dict[str, fx.Node] = {}  # by value name
        self._stuck = ""
        self._cut_off: dict[str, fx.Node] = {}  # without gradients, by value name
        self._reckoned: dict[Any, Any] = {}  # by size
        self._followed: dict[str, fx.Node] = {}

    def write(self) -> Program:
        nodes = [node for node in self._resized.nodes if not node.training]
        wanted = self._wanted_dims(nodes)
        for name, called in self._inputs.items():
            self._made[name] = self._code.placeholder(called)
        for name in self._inputs:
            self._read_sizes(name, wanted)
        for node in nodes:
            self._call(node)
            for name in node.outputs:
                self._read_sizes(name, wanted)
        outputs = dict.fromkeys(names_in(self._graph.returns))
        self._code.output(tuple(self._value(name) for name in outputs))
        written = self._code.python_code("self")
        unknown = set(written.globals) - {*_KNOWN, "NoneType", "fx_pytree", "pytree"}
        if unknown:
            raise TransformError(f"the captured graph calls {sorted(unknown)}: no operators")
        used = [value for name, value in self._graph.values.items() if name in self._made]
        return Program(
            source=written.src,
            inputs=tuple(self._inputs),
            outputs=tuple(outputs),
            tensors=tuple(v.source for v in used if v.kind in ("parameter", "buffer")),
            stuck=self._stuck,
        )

    # -- tensors

    def _value(self, name: str) -> fx.Node:
        if name not in self._made:
            value = self._graph.values.get(name)
            if value is not None and value.kind in ("parameter", "buffer"):
                made = self._code.get_attr(value.source)
            elif name in self._constants:
                made = self._code.get_attr(self._constants[name])
            else:
                producer, _, index = name.rpartition("#")
                made = self._code.call_function(
                    operator.getitem, (self._made[producer], int(index))
                )
            self._made[name] = made
        return self._made[name]

    def _detached(self, name: str) -> fx.Node:
        """Return a tensor for a call through which the original lets no gradients pass."""
        if name not in self._cut_off:
            detach = operator_of("aten.detach.default")
            self._cut_off[name] = self._code.call_function(detach, (self._value(name),))
        return self._cut_off[name]

    def _call(self, node: Node) -> None:
        # A capture does not show a `contiguous` that had nothing to do, so a view may need a copy.
        op = "aten.reshape.default" if node.op == "aten.view.default" else node.op
        try:
            target = operator_of(op)
        except AttributeError as error:
            raise TransformError(
                f"{node.where()} is not an operator that can stand in a rewritten graph"
            ) from error
        args = tuple(self._argument(node, (i,), arg) for i, arg in enumerate(node.args))
        kwargs = {key: self._argument(node, (key,), arg) for key, arg in node.kwargs.items()}
        made = self._code.create_node("call_function", target, args, kwargs, name=node.name)
        self._made[node.name] = made

    def _argument(self, node: Node, path: Path, value: Any) -> Any:
        if isinstance(value, Ref):
            return self._value(value.name) if node.grad else self._detached(value.name)
        if isinstance(value, tuple):
            return [self._argument(node, (*path, i), item) for i, item in enumerate(value)]
        if isinstance(value, Mapping):
            return {key: self._argument(node, (*path, key), v) for key, v in value.items()}
        if isinstance(value, int) and not isinstance(value, bool):
            return self._number(node, path, value)
        if isinstance(value, torch.device) and value == self._device:
            return self._follow("device")
        same = self._others.get(node.name)
        written = isinstance(path[0], str) and path[0] not in self._nodes[node.name].kwargs
        if same is not None and not written and literal(same, path) != value:
            other = literal(same, path)
            if isinstance(value, torch.dtype):
                return self._follow("dtype")
            if not _are_limits(value, other):
                self._stuck = self._stuck or f"{value} in {node.where()}"
        return value

    def _follow(self, attribute: str) -> fx.Node:
        """Read the precision or the device off a parameter of the module."""
        if attribute not in self._followed:
            floats = [v for v in self._graph.values.values() if v.dtype.is_floating_point]
            kinds = ("parameter", "buffer", "input")
            anchor = next(v for kind in kinds for v in floats if v.kind == kind)
            self._followed[attribute] = self._code.call_function(
                getattr, (self._value(anchor.name), attribute)
            )
        return self._followed[attribute]

    # -- numbers

    def _number(self, node: Node, path: Path, number: int) -> Any:
        """Return a number, or what computes it where it depends on the inputs' sizes."""
        origin = node.sizes.get(path)
        if origin is not None and self._explains(origin, node, path, number):
            return self._reckon(origin)
        if node.name not in self._others:
            return number
        original = literal(self._nodes[node.name], path)
        other = literal(self._others[node.name], path)
        if original == other:
            return number
        found = self._by_inputs(original, other, number)
        if found is None:
            self._stuck = self._stuck or f"{original} in {node.where()}"
        return number if found is None else found

    @cached_property
    def _nodes(self) -> dict[str, Node]:
        return {node.name: node for node in self._graph.nodes}

    def _by_inputs(self, first: int, second: int, number: int) -> Any:
        """Let a number grow with the inputs as it did between two captures, if that can be told."""
        for chosen in (c for n in (1, 2) for c in combinations(self._grown, n)):
            before, after = prod(old for _, old, _ in chosen), prod(new for _, _, new in chosen)
            if before and first * after == second * before and number % before == 0:
                size: Size = number // before
                for dim, _, _ in chosen:
                    size = dim if size == 1 else Calc("*", dim, size)
                return self._reckon(size)
        if len(self._grown) != 1 or number != first:
            return None
        ((dim, before, after),) = self._grown
        slope, rest = divmod(second - first, after - before)
        size = Calc("+", Calc("*", dim, slope), first - slope * before)
        return None if rest else self._reckon(size)

    @cached_property
    def _grown(self) -> list[tuple[Dim, int, int]]:
        """List what grew between the captures, by how much: the batch, the only length there is."""
        assert self._second is not None
        batches: list[tuple[Dim, int, int]] = []
        lengths: list[tuple[Dim, int, int]] = []
        for name in self._inputs:
            shapes = (self._graph.values[name].shape, self._second.shapes[name])
            for d, (old, new) in enumerate(zip(*shapes, strict=True)):
                if old != new:
                    (lengths if d else batches).append((Dim(name, d), old, new))
        only = (
            len({old for _, old, _ in lengths})
            == 1
            == max(Counter(dim.value for dim, _, _ in lengths).values(), default=0)
        )
        return [*batches[:1], *(lengths[:1] if only else ())]

    def _explains(self, origin: Size, node: Node, path: Path, number: int) -> bool:
        """Say whether a number's origin gives the right number in every capture at hand."""
        found: list[tuple[Mapping[str, Shape], Any]] = [(self._resized.shapes, number)]
        if self._second is not None:
            found.append((self._second.shapes, literal(self._others[node.name], path)))
        return any(self._is_read(dim) for dim in _dims(origin)) and all(
            self._evaluate(origin, shapes, now=i == 0) == wanted
            for i, (shapes, wanted) in enumerate(found)
        )

    def _is_read(self, dim: Dim) -> bool:
        """Say whether a dimension is one of a tensor that the function has at hand."""
        value = self._graph.values.get(dim.value)
        return value is not None and value.kind in ("input", "activation")

    def _evaluate(self, size: Size, shapes: Mapping[str, Shape], *, now: bool) -> int:
        if isinstance(size, Dim):
            return shapes[size.value][size.dim] if size.value in shapes else -1
        if isinstance(size, Attr):
            new = self._resized.attributes if now else {}
            return new.get((size.module, size.name), size.value)
        if isinstance(size, Calc):
            left, right = (self._evaluate(s, shapes, now=now) for s in (size.left, size.right))
            return calculate(size.op, left, right)
        return size

    def _reckon(self, size: Size) -> Any:
        """Write down how a number is computed."""
        if size not in self._reckoned:
            if isinstance(size, Dim) and self._is_read(size):
                value = self._value(size.value)
                self._reckoned[size] = self._code.call_method("size", (value, size.dim))
            elif isinstance(size, Calc):
                parts = (self._reckon(size.left), self._reckon(size.right))
                self._reckoned[size] = self._compute(size.op, *parts)
            else:
                self._reckoned[size] = self._evaluate(size, self._resized.shapes, now=True)
        return self._reckoned[size]

    def _compute(self, op: str, left: Any, right: Any) -> Any:
        if not isinstance(left, fx.Node) and not isinstance(right, fx.Node):
            return calculate(op, left, right)
        return self._code.call_function(_OPERATORS[op], (left, right))

    def _wanted_dims(self, nodes: Sequence[Node]) -> Mapping[str, set[Dim]]:
        """List the dimensions to read off every value, so that it need not live until they are."""
        wanted: dict[str, set[Dim]] = defaultdict(set)
        for node in nodes:
            for path, origin in node.sizes.items():
                number = literal(node, path)
                if not isinstance(origin, int) and self._explains(origin, node, path, number):
                    for dim in filter(self._is_read, _dims(origin)):
                        wanted[dim.value].add(dim)
        return wanted

    def _read_sizes(self, name: str, wanted: Mapping[str, set[Dim]]) -> None:
        for dim in sorted(wanted.get(name, ()), key=lambda d: d.dim):
            self._reckon(dim)


def _dims(size: Size) -> list[Dim]:
    if isinstance(size, Calc):
        return [*_dims(size.left), *_dims(size.right)]
    return [size] if isinstance(size, Dim) else []


def _are_limits(value: Any, other: Any) -> bool:
    """Say whether two numbers are the same limit of two precisions (the smallest, as a mask)."""
    precisions = [
        torch.finfo(d) for d in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    ]
    return any(
        {value, other} <= {getattr(precision, name) for precision in precisions}
        for name in ("min", "max", "eps", "tiny")
    )
