"""Where the readings of ONNX operators are kept: a name to the function that computes it."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from prunella.onnxfiles.numbers import Host, Operand


class Call(Protocol):
    """What a reading knows of the node beside its inputs."""

    @property
    def opset(self) -> int:
        """Return the version of the standard operators."""

    @property
    def outputs(self) -> int:
        """Count the outputs that are asked for."""

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute."""


Result = Tensor | Host | tuple[Tensor, ...]
Reading = Callable[..., Result]
"""Given the call and its operands (a tensor, numbers, or None for one left out): the outputs."""

OPERATORS: dict[str, Reading] = {}


def reads(*ops: str) -> Callable[[Reading], Reading]:
    """Register a function as the reading of operators of the standard domain."""

    def register(function: Reading) -> Reading:
        for op in ops:
            OPERATORS[op] = function
        return function

    return register


def optional(operands: tuple[Operand, ...], index: int) -> Operand:
    """Return an operand that may be left out."""
    return operands[index] if index < len(operands) else None
