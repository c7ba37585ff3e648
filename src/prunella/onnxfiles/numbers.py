"""Numbers that are known without the data: sizes, and what a graph computes from them.

An ONNX graph computes with sizes as it does with activations: `Shape`, `Gather`, `Concat`,
`Reshape`. Here such values are Python numbers in place of tensors, so that integers keep their
origins (`tracing.provenance`) from the dimension or the constant they were read from to the
operator that uses them.
"""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LONGEST = 64
"""A constant of more numbers than that is a table, not a shape."""

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class UnreadError(Exception):
    """This way of using an operator is not one we read; the node is run as an unknown one."""


@dataclass(frozen=True, slots=True)
class Host:
    """A value of rank 0 or 1 as Python numbers, `shape` `()` or `(n,)`."""

    values: tuple[Any, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def scalar(self) -> bool:
        """Whether there is a single number in it."""
        return len(self.values) == 1

    def tensor(self) -> Tensor:
        """Make the tensor that it stands for."""
        plain = [_plain(value) for value in self.values]
        return torch.tensor(plain, dtype=self.dtype).reshape(self.shape)


Operand = Tensor | Host | None


def _plain(value: Any) -> Any:
    return int.__index__(value) if isinstance(value, int) else value


def vector(values: Sequence[Any], dtype: torch.dtype = torch.int64) -> Host:
    """Make a value of rank 1."""
    return Host(tuple(values), (len(values),), dtype)


def scalar(value: Any, dtype: torch.dtype = torch.int64) -> Host:
    """Make a value of rank 0."""
    return Host((value,), (), dtype)


def numbers(value: Operand, what: str) -> list[Any]:
    """Return the numbers of an operand.

    Raises:
        UnreadError: They depend on the data.
    """
    if not isinstance(value, Host):
        raise UnreadError(f"its {what} depends on the data")
    return list(value.values)


def as_tensor(value: Operand) -> Tensor:
    """Return an operand as a tensor."""
    if value is None:
        raise UnreadError("an input is missing")
    return value.tensor() if isinstance(value, Host) else value


def compute(op: str, attributes: dict[str, Any], operands: Sequence[Operand]) -> Host | None:
    """Compute an operator on numbers alone; None where it must be done with tensors.

    Args:
        op: The operator.
        attributes: The node's attributes.
        operands: Its inputs.
    """
    hosts = [value for value in operands if isinstance(value, Host)]
    if len(hosts) != len(operands) or not hosts:
        return None
    if op in _BINARY:
        return _elementwise(op, hosts)
    if op in _UNARY:
        return Host(tuple(_UNARY[op](v) for v in hosts[0].values), hosts[0].shape, hosts[0].dtype)
    found = _OTHER.get(op)
    return found(attributes, hosts) if found else None


def _divide(a: Any, b: Any) -> Any:
    if isinstance(a, float) or isinstance(b, float):
        return a / b if b else math.nan
    return a // b if a >= 0 and b > 0 else int(a / b)  # towards zero


def _power(a: Any, b: Any) -> Any:
    return a**b


_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": _divide,
    "Mod": operator.mod, "Pow": _power, "Min": min, "Max": max, "Equal": operator.eq,
    "Greater": operator.gt, "Less": operator.lt, "GreaterOrEqual": operator.ge,
    "LessOrEqual": operator.le, "And": lambda a, b: a and b, "Or": lambda a, b: a or b,
}  # fmt: skip
_TELLS = frozenset("Equal Greater Less GreaterOrEqual LessOrEqual And Or".split())
_UNARY: dict[str, Callable[[Any], Any]] = {
    "Neg": operator.neg, "Abs": abs, "Identity": lambda v: v, "Not": operator.not_,
    "Floor": lambda v: float(math.floor(v)), "Ceil": lambda v: float(math.ceil(v)),
    "Round": lambda v: float(round(v)), "Sqrt": math.sqrt,
}  # fmt: skip


def _wide(hosts: Sequence[Host]) -> tuple[int, ...]:
    return max((host.shape for host in hosts), key=lambda shape: (len(shape), *shape))


def _spread(host: Host, count: int) -> tuple[Any, ...]:
    return host.values * count if host.scalar else host.values


def _elementwise(op: str, hosts: Sequence[Host]) -> Host:
    shape = _wide(hosts)
    count = shape[0] if shape else 1
    made, *rest = (_spread(host, count) for host in hosts)
    # Numbers are compared as plain ones: what tracked integers are equal to would be noted.
    for other in rest:
        pairs = zip(made, other, strict=True)
        made = tuple(
            _BINARY[op](_plain(a), _plain(b)) if op in _TELLS else _BINARY[op](a, b)
            for a, b in pairs
        )
    dtype = torch.bool if op in _TELLS else hosts[0].dtype
    return Host(made, shape, dtype)


def _cast(attributes: dict[str, Any], hosts: Sequence[Host]) -> Host | None:
    (host,), to = hosts, attributes["dtype"]
    values: tuple[Any, ...]
    if to in _WHOLE:
        values = tuple(v if isinstance(v, int) else int(v) for v in host.values)
    elif to == torch.bool:
        values = tuple(bool(v) for v in host.values)
    elif to.is_floating_point:
        values = host.values if _all_whole(host) else tuple(float(v) for v in host.values)
    else:
        return None
    return Host(values, host.shape, to)


def _all_whole(host: Host) -> bool:
    return all(isinstance(v, int) and not isinstance(v, bool) for v in host.values)


def _gather(attributes: dict[str, Any], hosts: Sequence[Host]) -> Host | None:
    data, at = hosts
    if not data.shape:
        return None
    return Host(tuple(data.values[i] for i in at.values), at.shape, data.dtype)


def _slice(attributes: dict[str, Any], hosts: Sequence[Host]) -> Host | None:
    data = hosts[0]
    if len(hosts) > 1:
        start, stop = (host.values[0] for host in hosts[1:3])
        step = hosts[4].values[0] if len(hosts) > 4 else 1
    else:
        start, stop, step = attributes["starts"][0], attributes["ends"][0], 1
    whole = slice(_plain(start), _plain(stop), _plain(step))
    if whole.step < 0 and whole.stop < -len(data.values):
        whole = slice(whole.start, None, whole.step)
    return vector(data.values[whole], data.dtype)


def _concat(attributes: dict[str, Any], hosts: Sequence[Host]) -> Host:
    return vector([v for host in hosts for v in host.values], hosts[0].dtype)


def _unsqueeze(attributes: dict[str, Any], hosts: Sequence[Host]) -> Host | None:
    return None if hosts[0].shape else vector(hosts[0].values, hosts[0].dtype)


def _squeeze(attributes: dict[str, Any], hosts: Sequence[Host]) -> Host | None:
    data = hosts[0]
    return Host(data.values, (), data.dtype) if data.shape in ((1,), ()) else None


def _reshape(attributes: dict[str, Any], hosts: Sequence[Host]) -> Host | None:
    data, shape = hosts
    if len(shape.values) > 1:
        return None
    return Host(data.values, (len(data.values),) if shape.values else (), data.dtype)


def _where(attributes: dict[str, Any], hosts: Sequence[Host]) -> Host:
    shape = _wide(hosts)
    count = shape[0] if shape else 1
    tell, yes, no = (_spread(host, count) for host in hosts)
    made = tuple(a if t else b for t, a, b in zip(tell, yes, no, strict=True))
    return Host(made, shape, hosts[1].dtype)


def _fill(attributes: dict[str, Any], hosts: Sequence[Host]) -> Host | None:
    value, dtype = attributes.get("fill", (0.0, torch.float32))
    size = hosts[0].values
    if dtype not in _WHOLE or len(size) > 1 or (size and size[0] > LONGEST):
        return None
    made = (value,) * _plain(size[0]) if size else (value,)
    return Host(made, (len(made),) if size else (), dtype)


def _product(attributes: dict[str, Any], hosts: Sequence[Host]) -> Host:
    return _folded(operator.mul, 1, attributes, hosts)


def _sum(attributes: dict[str, Any], hosts: Sequence[Host]) -> Host:
    return _folded(operator.add, 0, attributes, hosts)


def _folded(
    step: Callable[[Any, Any], Any], start: Any, attributes: dict[str, Any], hosts: Sequence[Host]
) -> Host:
    total = start
    for value in hosts[0].values:
        total = step(total, value)
    keep = attributes.get("keepdims", 1) and hosts[0].shape
    return Host((total,), (1,) if keep else (), hosts[0].dtype)


def _expand(attributes: dict[str, Any], hosts: Sequence[Host]) -> Host | None:
    data, shape = hosts
    if len(shape.values) > 1 or not shape.values:
        return None
    count = max(_plain(shape.values[0]), len(data.values))
    return vector(_spread(data, count), data.dtype)


_OTHER: dict[str, Callable[[dict[str, Any], Sequence[Host]], Host | None]] = {
    "Cast": _cast, "Gather": _gather, "Slice": _slice, "Concat": _concat,
    "Unsqueeze": _unsqueeze, "Squeeze": _squeeze, "Reshape": _reshape, "Where": _where,
    "ConstantOfShape": _fill, "ReduceProd": _product, "ReduceSum": _sum, "Expand": _expand,
}  # fmt: skip
