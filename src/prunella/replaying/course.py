"""A captured network that runs node by node: in parts, or several batches side by side."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from prunella.graph import Graph, Node
from prunella.model.containers import filled, names_in, opaque_in
from prunella.replaying.nodes import Step, Values, names_of, run_node, written

_OWNED = ("parameter", "buffer")


@dataclass(frozen=True, eq=False)
class Course:
    """What a network does in evaluation mode, node by node; a *position* lies before a node."""

    graph: Graph

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """The operator calls, in order."""
        return tuple(node for node in self.graph.nodes if not node.training)

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """The tensors that the user gets in evaluation mode."""
        extra = {name for node in self.graph.nodes if node.training for name in node.outputs}
        return tuple(name for name in self.graph.outputs if name not in extra)

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
            for name in names_of(node):
                if name in values and values[name].kind in _OWNED:
                    found.setdefault(values[name].source, position)
        return found

    def live(self, position: int) -> frozenset[str]:
        """List the inputs and activations that are there at a position and needed behind it."""
        return self._live[position]

    def gone(self, position: int) -> frozenset[str]:
        """List the inputs and activations that nothing needs behind the node at a position."""
        return self._gone[position]

    def size(self, position: int) -> int:
        """Count the bytes of what is live at a position."""
        return sum(map(self._bytes, self.live(position)))

    @cached_property
    def peak(self) -> int:
        """Count the bytes of what is there at the worst moment, inputs aside."""
        inputs = set(self.graph.inputs)
        sizes = (
            sum(map(self._bytes, self.live(position).union(node.outputs) - inputs))
            for position, node in enumerate(self.nodes)
        )
        return max(sizes, default=0)

    def _bytes(self, name: str) -> int:
        value = self.graph.values[name]
        return torch.Size(value.shape).numel() * value.dtype.itemsize

    @cached_property
    def _live(self) -> list[frozenset[str]]:
        ends = {*self.outputs, *names_in(self.graph.returns)}
        needed = {name for name in ends if self._passes(name)}
        found = [frozenset(needed)]
        for node in reversed(self.nodes):
            needed = needed.difference(node.outputs)
            needed = needed.union(name for name in names_of(node) if self._passes(name))
            found.append(frozenset(needed))
        return found[::-1]

    @cached_property
    def _gone(self) -> list[frozenset[str]]:
        return [
            self.live(position).union(node.outputs) - self.live(position + 1)
            for position, node in enumerate(self.nodes)
        ]

    def _passes(self, name: str) -> bool:
        return name in self.graph.values and self.graph.values[name].kind in ("input", "activation")

    def lane(self, live: Mapping[str, Tensor], tensors: Values) -> "Lane":
        """Begin where these values are, with these parameters and buffers (by the user's names)."""
        owned = {n: tensors[v.source] for n, v in self.graph.values.items() if v.kind in _OWNED}
        return Lane(self, {**self.graph.constants, **owned, **live})

    def run(
        self, live: Mapping[str, Tensor], start: int, stop: int, tensors: Values
    ) -> dict[str, Tensor]:
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
        at = self.lane(live, tensors)
        given = {_memory(tensor) for tensor in at.values.values()}
        for position in range(start, stop):
            for name in written(self.nodes[position]):
                if _memory(at.values[name]) in given:
                    _set_apart(name, at.values)
            at.take(position, at.run(position, run_node))
        return {name: at.values[name] for name in self.live(stop)}

    def returned(self, live: Mapping[str, Tensor], tensors: Values) -> Any:
        """Return what the model returns, in its own containers, given what is live at the end."""
        found = dict(live)
        for name in names_in(self.graph.returns):
            value = self.graph.values[name]
            if value.kind in _OWNED:
                found[name] = tensors[value.source]
            elif value.kind == "constant":
                found[name] = self.graph.constants[name]
        return filled(self.graph.returns, found)


@dataclass(frozen=True, eq=False)
class Lane:
    """One batch on its way through the network, with the tensors alive at this point."""

    course: Course
    values: dict[str, Tensor]

    def run(self, position: int, step: Step) -> list[Tensor]:
        """Compute the node at a position, without yet letting go of anything."""
        return step(self.course.nodes[position], self.values)

    def take(self, position: int, made: Sequence[Tensor]) -> None:
        """Go on with what the node made; let go of what was needed for the last time."""
        self.values.update(zip(self.course.nodes[position].outputs, made, strict=True))
        for name in self.course.gone(position):
            self.values.pop(name, None)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _set_apart(name: str, values: dict[str, Tensor]) -> None:
    """Copy the memory of a tensor, and let everything that shows the same memory show the copy."""
    memory = _memory(values[name])
    copy = values[name].untyped_storage().clone()
    for other, tensor in values.items():
        if _memory(tensor) == memory:
            shown = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            values[other] = shown.set_(copy, tensor.storage_offset(), tensor.shape, tensor.stride())
