"""A captured network that runs in parts: up to a node, and from there on, as often as asked."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from prunella.graph import Graph, Node, refs
from prunella.model.containers import filled, names_in, opaque_in
from prunella.replaying import run_node
from prunella.tracing.operators import operator_of

Values = dict[str, Tensor]

_OWNED = ("parameter", "buffer")


@dataclass(frozen=True, eq=False)
class Course:
    """What a network does in evaluation mode, node by node; a *position* lies before a node."""

    graph: Graph

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """The operator calls, in order."""
        return tuple(node for node in self.graph.nodes if not node.training)

    @property
    def end(self) -> int:
        """The position behind the last node."""
        return len(self.nodes)

    def obstacle(self) -> str:
        """Say why this network cannot run in the model's place; "" if it can."""
        if self.graph.recorded:
            return "it could be captured only as one recorded run"
        for kind in opaque_in(self.graph.returns):
            return f"it returns a `{kind.__name__}`, which cannot be looked into"
        return ""

    def first_use(self, tensors: Collection[str]) -> int:
        """Return the position of the first node that reads one of these parameters and buffers."""
        return min((self._first_uses.get(name, self.end) for name in tensors), default=self.end)

    @cached_property
    def _first_uses(self) -> Mapping[str, int]:
        """Map parameters and buffers to the position of the first node that reads each."""
        values = self.graph.values
        found: dict[str, int] = {}
        for position, node in enumerate(self.nodes):
            for name in _names(node):
                if name in values and values[name].kind in _OWNED:
                    found.setdefault(values[name].source, position)
        return found

    def live(self, position: int) -> frozenset[str]:
        """List the inputs and activations that are there at a position and needed behind it."""
        return self._live[position]

    def size(self, position: int) -> int:
        """Count the bytes of what is live at a position."""
        found = (self.graph.values[name] for name in self.live(position))
        return sum(torch.Size(v.shape).numel() * v.dtype.itemsize for v in found)

    @cached_property
    def _live(self) -> list[frozenset[str]]:
        needed = {name for name in names_in(self.graph.returns) if self._passes(name)}
        found = [frozenset(needed)]
        for node in reversed(self.nodes):
            needed = needed.difference(node.outputs)
            needed = needed.union(name for name in _names(node) if self._passes(name))
            found.append(frozenset(needed))
        return found[::-1]

    def _passes(self, name: str) -> bool:
        return name in self.graph.values and self.graph.values[name].kind in ("input", "activation")

    def run(
        self, live: Mapping[str, Tensor], start: int, stop: int, tensors: Mapping[str, Tensor]
    ) -> Values:
        """Go from one position to another.

        None of the tensors given is written to: where an operator writes in place, it gets a copy.

        Args:
            live: What is live at `start`.
            start: Where to begin.
            stop: Where to end.
            tensors: Parameters and buffers, by the user's names.

        Returns:
            What is live at `stop`.
        """
        owned = {n: tensors[v.source] for n, v in self.graph.values.items() if v.kind in _OWNED}
        values: Values = {**self.graph.constants, **owned, **live}
        given = {_memory(tensor) for tensor in values.values()}
        for position in range(start, stop):
            node = self.nodes[position]
            for name in _written(node):
                if _memory(values[name]) in given:
                    _set_apart(name, values)
            values.update(zip(node.outputs, run_node(node, values), strict=True))
            for name in (self.live(position) | set(node.outputs)) - self.live(position + 1):
                values.pop(name, None)
        return {name: values[name] for name in self.live(stop)}

    def returned(self, live: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Any:
        """Return what the model returns, in its own containers, given what is live at the end."""
        found = dict(live)
        for name in names_in(self.graph.returns):
            value = self.graph.values[name]
            if value.kind in _OWNED:
                found[name] = tensors[value.source]
            elif value.kind == "constant":
                found[name] = self.graph.constants[name]
        return filled(self.graph.returns, found)


def _names(node: Node) -> Iterable[str]:
    return (ref.name for ref in refs((node.args, dict(node.kwargs))))


def _written(node: Node) -> list[str]:
    """List the tensors that a node writes to."""
    schema = operator_of(node.op)._schema  # type: ignore[attr-defined]
    if not schema.is_mutable:
        return []
    given = {
        **dict(enumerate(node.args)),
        **{i: node.kwargs[a.name] for i, a in enumerate(schema.arguments) if a.name in node.kwargs},
    }
    written = [
        given.get(i)
        for i, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return [ref.name for ref in refs(tuple(written))]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _set_apart(name: str, values: Values) -> None:
    """Copy the memory of a tensor, and let everything that shows the same memory show the copy."""
    memory = _memory(values[name])
    copy = values[name].untyped_storage().clone()
    for other, tensor in values.items():
        if _memory(tensor) == memory:
            shown = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            values[other] = shown.set_(copy, tensor.storage_offset(), tensor.shape, tensor.stride())
