"""The captured network as frozen values: tensors by name, and the operators between them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

Kind = Literal["parameter", "buffer", "input", "constant", "activation"]


@dataclass(frozen=True, slots=True)
class Ref:
    """Stands for the tensor called `name` among the arguments of a node."""

    name: str


def refs(argument: Any) -> list[Ref]:
    """List the tensors in an argument of a node, however deep in tuples and dicts."""
    if isinstance(argument, Ref):
        return [argument]
    if isinstance(argument, tuple):
        return [ref for item in argument for ref in refs(item)]
    if isinstance(argument, Mapping):
        return [ref for item in argument.values() for ref in refs(item)]
    return []


@dataclass(frozen=True, slots=True)
class Value:
    """One tensor of the network.

    `source` is the user's name for it: the qualified name of a parameter or buffer
    ("layer1.0.conv1.weight"), the name of an input, else the name of the node that made it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: Kind
    source: str


@dataclass(frozen=True, slots=True)
class Dim:
    """The model's code read this number as the size of a dimension of a tensor."""

    value: str
    dim: int


@dataclass(frozen=True, slots=True)
class Attr:
    """The model's code read this number from an attribute of a module, or of what a module holds.

    `Attr("blocks.0.attn", "num_heads", 12)`, `Attr("", "config.hidden_size", 768)`,
    `Attr("norm", "normalized_shape[0]", 768)`.
    """

    module: str
    name: str
    value: int


@dataclass(frozen=True, slots=True)
class Calc:
    """The model's code computed this number: `left op right`, op one of + - * // %."""

    op: str
    left: "Size"
    right: "Size"


Size = int | Dim | Attr | Calc
"""Where a number in the arguments of a node comes from; a plain int stands in the code itself."""

Path = tuple[int | str, ...]
"""Leads to a part of a node's arguments: `(1, 2)` is `args[1][2]`, `("dim",)` `kwargs["dim"]`."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operator call, its tensor arguments replaced by `Ref`.

    `module` is the qualified name of the innermost module whose forward made the call ("" is the
    model itself), `module_type` the name of its class. `training` marks a call that was captured in
    training mode, for the sake of modules that run only then: it binds channels and costs nothing.
    `sizes` says where the integers among the arguments come from; what is not listed is unknown.
    `line` is the line of the model's code that made the call, where integers were handed over.
    `grad` is False where the model's own code turns gradients off.
    """

    name: str
    op: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[str, ...]
    module: str
    module_type: str
    training: bool = False
    sizes: Mapping[Path, Size] = field(default_factory=dict)
    line: str = ""
    grad: bool = True

    def where(self) -> str:
        """Say which operator in which module this is, for messages."""
        return f"`{self.op}` in `{self.module or 'the model itself'}`"


@dataclass(frozen=True)
class Graph:
    """A network captured once, on example inputs.

    Attributes:
        values: All tensors by name.
        nodes: All operator calls, in order.
        inputs: Names of the tensors the user passes.
        outputs: Names of the tensors the user gets.
        modules: Qualified names to classes, for `exclude`.
        samples: Samples in the example inputs (the size of their first dimension, where all agree
            on it): costs are of one sample.
        digest: Fingerprint of the structure: names and shapes of all parameters and buffers.
        example: Description of the inputs, good enough to make others like them (`examples`); None
            where there is none.
        unused: Parameters that nothing captured uses.
        equal: Numbers that the model's code compared and found equal.
        recorded: The graph is one recorded run, whose later course may depend on the data: it tells
            which channels belong together, but cannot be run in the model's place.
        takes: How the user's arguments become `inputs`: `(args, kwargs)` with a `Ref` for each
            tensor.
        returns: What the model returns, as `containers.emptied` describes it.
        constants: The tensors that the model's code itself holds, by value name.
    """

    values: Mapping[str, Value]
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    modules: Mapping[str, type]
    samples: int
    digest: str
    example: Any = None
    unused: tuple[str, ...] = ()
    equal: tuple[tuple[Size, Size], ...] = ()
    recorded: bool = False
    takes: Any = None
    returns: Any = None
    constants: Mapping[str, torch.Tensor] = field(default_factory=dict, compare=False)
