"""What the captured network looks like once channels are cut: shapes, arguments, what survives.

Nothing is run: the sizes are read off the labels that went through the network.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunella import rules
from prunella.coupling.coupling import close, propagate
from prunella.errors import CouplingError
from prunella.graph import Attr, Calc, Dim, Node, Path, Size, refs
from prunella.labels import Extent, Labels, Shape, varying
from prunella.labels.extents import Rows, Spread, along, row_key, shorter_dim, spans
from prunella.plan import Groups, Plan
from prunella.rules import scaling


@dataclass(frozen=True, eq=False)
class Flow:
    """How labels went through a network in its own shapes, so that a plan's can be told.

    Attributes:
        groups: The groups of the network.
        spreads: For every value, the dimensions each of its layers varies on, and the channel
            numbers along them; -1 is what is in no group.
        rows: The rows that must keep equally many.
        constraints: How many constraints were recorded on the way.
        extents: For every node, which of its arguments are sizes, and of what.
    """

    groups: Groups
    spreads: Mapping[str, tuple[Spread, ...]]
    rows: Rows
    constraints: int
    extents: Mapping[str, Mapping[Path, Extent]]


def flow_of(groups: Groups) -> Flow:
    """Send labels through the network once more, and keep where they went."""
    graph = groups.graph
    shapes = {name: value.shape for name, value in graph.values.items()}
    labels = propagate(graph, shapes, groups.heads)
    number = _numbers(groups, labels)
    found = {
        name: tuple(
            (dims, number[layer.reshape([layer.shape[d] for d in dims]).numpy()])
            for layer in layers
            if (dims := varying(layer))
        )
        for name, layers in labels.layers.items()
    }
    return Flow(
        groups=groups,
        spreads=found,
        rows=frozenset(row_key(row) for block in groups.blocks for row in block.rows),
        constraints=len(labels.rows),
        extents={node.name: rules.extents(labels, node) for node in graph.nodes},
    )


def _numbers(groups: Groups, labels: Labels) -> np.ndarray:
    """Map every label to its channel number, -1 for what is in no group."""
    components = close(labels)
    of_component = np.full(components.max(initial=-1) + 1, -1)
    for axis, number in groups.axes.items():
        of_component[components[labels.axes[axis].numpy()]] = number
    return np.asarray(of_component[components])


@dataclass(frozen=True, eq=False)
class Resized:
    """A network with fewer channels, on paper.

    Attributes:
        flow: How labels went through the network in its own shapes.
        mask: For every channel number, whether it is kept; one more at the end, for number -1.
    """

    flow: Flow
    mask: np.ndarray

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Return the shapes of all values."""
        values = self.flow.groups.graph.values
        found = {name: self._shape(name, value.shape) for name, value in values.items()}
        sources = {v.source: name for name, v in values.items() if v.kind == "parameter"}
        for axis, number in self.flow.groups.axes.items():
            if number.ndim == 2:  # columns of a grouped convolution: every conv group has its own
                name = sources[axis.tensor]
                sizes = list(found[name])
                sizes[axis.dim] = int(self.mask[number[0]].sum())
                found[name] = tuple(sizes)
        return found

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Return the nodes of the graph with every number rewritten that depends on sizes."""
        return tuple(self._resize(node) for node in self.flow.groups.graph.nodes)

    def kept(self, value: str) -> Tensor | None:
        """Say which elements of a value survive: a bool mask that broadcasts to its shape.

        None where all do.
        """
        ndim = len(self.flow.groups.graph.values[value].shape)
        found: Tensor | None = None
        for dims, number in self.flow.spreads.get(value, ()):
            kept = self.mask[number]
            if not kept.all():
                wide = [1] * ndim
                for dim, size in zip(dims, number.shape, strict=True):
                    wide[dim] = size
                part = torch.from_numpy(kept.reshape(wide))
                found = part if found is None else found & part
        return found

    @cached_property
    def attributes(self) -> dict[tuple[str, str], int]:
        """Return the new values of modules' attributes, by module and name."""
        return {
            (f.module, f.attribute): int(self.mask[f.channels].sum()) // f.per
            for f in self.flow.groups.followers
        }

    def _shape(self, name: str, shape: Shape) -> Shape:
        sizes = list(shape)
        for dims, number in self.flow.spreads.get(name, ()):
            if self.mask[number].all():
                continue
            found = shorter_dim(number, self.flow.rows)
            if found == -1:
                reach = spans(number, self.mask)
                if reach is None:
                    raise CouplingError("rows of channels that must keep equally many do not")
                for dim, size in zip(dims, reach, strict=True):
                    sizes[dim] = size
            elif found is not None:
                first = tuple(slice(None) if d == found else 0 for d in range(number.ndim))
                sizes[dims[found]] = int(self.mask[number[first]].sum())
        return tuple(sizes)

    def _count(self, extent: Extent) -> int:
        """Count what is kept of an extent."""
        spreads = self.flow.spreads.get(extent.value, ())
        whole = extent.stop - extent.start
        try:
            channels = along(spreads, extent.dim, self.flow.rows)
        except LookupError:
            size = self.flow.groups.graph.values[extent.value].shape[extent.dim]
            kept = whole if whole < size else self.shapes[extent.value][extent.dim]
        else:
            kept = (
                whole
                if channels is None
                else int(self.mask[channels[extent.start : extent.stop]].sum())
            )
        return extent.sign * kept // extent.per

    def _resize(self, node: Node) -> Node:
        extents = self.flow.extents[node.name]
        numbers: dict[Path, int] = {path: self._count(extent) for path, extent in extents.items()}
        for path, size in node.sizes.items():
            if path not in numbers and not isinstance(size, int):
                numbers[path] = self._evaluate(size)
        args, kwargs = node.args, dict(node.kwargs)
        for path, number in numbers.items():
            if isinstance(path[0], int):
                args = _put(args, path, number)
            else:
                kwargs[path[0]] = _put((kwargs[path[0]],), (0, *path[1:]), number)[0]
        values = self.flow.groups.graph.values
        before = {ref.name: values[ref.name].shape for ref in refs(node.args)}
        kwargs.update(scaling.written_down(node, before, self.shapes))
        return replace(node, args=args, kwargs=kwargs)

    def _evaluate(self, size: Size) -> int:
        if isinstance(size, Dim):
            return self.shapes[size.value][size.dim]
        if isinstance(size, Calc):
            return calculate(size.op, self._evaluate(size.left), self._evaluate(size.right))
        if isinstance(size, Attr):
            return self.attributes.get((size.module, size.name), size.value)
        return size


def calculate(op: str, left: int, right: int) -> int:
    """Compute `left op right`; what cannot be computed is 0."""
    if op in ("//", "%"):
        if right == 0:
            return 0
        return left // right if op == "//" else left % right
    return left + right if op == "+" else left - right if op == "-" else left * right


def resized(groups: Groups | Flow, mask: np.ndarray) -> Resized:
    """Say what a network looks like once only the channels of a mask are kept.

    Args:
        groups: The groups of a network, or the flow of its labels where it is at hand.
        mask: For every channel number, whether it is kept.
    """
    flow = groups if isinstance(groups, Flow) else flow_of(groups)
    return Resized(flow, np.append(mask, True))


def mask_from(groups: Groups, plan: Plan) -> np.ndarray:
    """Return the mask by channel number that a plan of the same network stands for."""
    mask = np.ones(groups.channels + 1, dtype=bool)
    for axis, number in groups.axes.items():
        kept = plan.kept.get(axis.tensor, {}).get(axis.dim)
        if kept is not None:
            for row, indices in zip(np.atleast_2d(number), np.atleast_2d(kept), strict=True):
                gone = np.ones(len(row), dtype=bool)
                gone[indices] = False
                mask[row[gone]] = False
    return mask[:-1]


def _put(value: tuple[Any, ...], path: Path, number: int) -> tuple[Any, ...]:
    """Replace one item, however deep."""
    index = int(path[0])
    while len(value) <= index:  # an argument left at its default stands nowhere
        raise LookupError(path)
    new = number if len(path) == 1 else _put(value[index], path[1:], number)
    return (*value[:index], new, *value[index + 1 :])
