"""Label layers: the arithmetic by which channels are followed through a network.

Every index of every dimension of every parameter gets an integer label. A tensor in the graph
carries *layers*: integer arrays that broadcast to the tensor's shape and have size 1 along each
dimension on which they do not vary. A weight `[out, in, kh, kw]` carries `[out, 1, 1, 1]` and
`[1, in, 1, 1]`. Rules move layers as the operator moves the tensor, and record which labels must
be cut together (`unite`), which may not be cut (`freeze`) and which rows must keep equally many
(`equal_rows`). Nothing is decided here: `coupling` closes the record once, at the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunella.graph import Graph, Node, Ref, Value
from prunella.plan import Axis, Frozen

Layer = Tensor
Layers = tuple[Layer, ...]
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Rows:
    """Label rows that must keep equally many; `moved` where a movement op cut them apart."""

    labels: Tensor
    where: str
    moved: bool


@dataclass(frozen=True, eq=False)
class Product:
    """Multiply-accumulates of one node: a factor times the sizes of the labelled dimensions."""

    node: str
    module: str
    factor: int
    dims: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Followed:
    """A module's integer attribute that equals the number of labels kept."""

    module: str
    attribute: str
    heads: Tensor


@dataclass(frozen=True)
class Operand:
    """A tensor in an element-wise meeting; `fill`: a constant, which takes on any size."""

    layers: Layers
    shape: Shape
    fill: bool = False


@dataclass
class Labels:
    """The record of one propagation; rules write, `coupling` reads.

    `shapes` are the shapes of all values: the graph's own, or those a plan would give.
    """

    graph: Graph
    shapes: dict[str, Shape]
    count: int = 0
    layers: dict[str, Layers] = field(default_factory=dict)
    axes: dict[Axis, Tensor] = field(default_factory=dict)
    edges: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    frozen: list[tuple[Tensor, Frozen]] = field(default_factory=list)
    structural: list[Tensor] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    followed: list[Followed] = field(default_factory=list)
    fills: set[str] = field(default_factory=set)
    marked: list[str] = field(default_factory=list)

    # -- what a rule asks

    def value(self, ref: Ref) -> Value:
        """Return the tensor that `ref` stands for."""
        return self.graph.values[ref.name]

    def shape(self, ref: Ref) -> Shape:
        """Return the size of the tensor that `ref` stands for."""
        return self.shapes[ref.name]

    def of(self, ref: Ref) -> Layers:
        """Return the layers of a tensor; parameters and float buffers are labelled on first use."""
        if ref.name not in self.layers:
            self.layers[ref.name] = self._enter(self.value(ref))
        return self.layers[ref.name]

    def operand(self, ref: Ref) -> Operand:
        """Return a tensor as it takes part in a meeting."""
        return Operand(self.of(ref), self.shape(ref), ref.name in self.fills)

    def fresh(self, n: int) -> Tensor:
        """Make `n` new labels."""
        self.count += n
        return torch.arange(self.count - n, self.count)

    def _enter(self, value: Value) -> Layers:
        if value.kind not in ("parameter", "buffer") or not value.dtype.is_floating_point:
            return ()
        shape = self.shapes[value.name]
        layers = []
        for dim, size in enumerate(shape):
            if size > 1:
                labels = self.axes[Axis(value.source, dim)] = self.fresh(size)
                layers.append(spread(labels, dim, len(shape)))
        return tuple(layers)

    def axis_by_blocks(self, ref: Ref, dim: int, blocks: int) -> Tensor | None:
        """Label a weight's dimension once per conv group: `[blocks, size]`.

        In a grouped convolution the same column of the weight holds a different input channel for
        every conv group, so the column's labels are one row per conv group. None where the weight
        is computed, or was already used as a whole.
        """
        value = self.value(ref)
        axis = Axis(value.source, dim)
        if value.kind != "parameter":
            return None
        known = self.axes.get(axis)
        if known is not None and known.ndim == 2:
            return known if known.shape[0] == blocks else None
        if ref.name in self.layers:
            return None
        size = self.shapes[ref.name][dim]
        self.layers[ref.name] = tuple(
            layer for layer in self._enter(value) if not varies(layer, dim)
        )
        self.axes[axis] = self.fresh(blocks * size).view(blocks, size)
        return self.axes[axis]

    # -- what a rule records

    def unite(self, a: Tensor, b: Tensor) -> None:
        """Cut the labels of `a` and `b` together, position by position (they broadcast)."""
        a, b = torch.broadcast_tensors(a, b)
        self.edges.append((a.reshape(-1), b.reshape(-1)))

    def freeze(self, labels: Tensor, reason: str, node: Node) -> None:
        """Forbid cutting `labels`, because of `node`."""
        if labels.numel():
            self.frozen.append((labels.reshape(-1), Frozen(reason, node.op, node.module)))

    def equal_rows(self, labels: Tensor, node: Node, *, moved: bool) -> None:
        """Require every row of `labels`, `[rows, size]`, to keep equally many."""
        self.rows.append(Rows(labels, node.where(), moved))

    def multiply(self, node: Node, factor: int, dims: Sequence[Tensor | int]) -> None:
        """Count a product of `factor` and the sizes `dims` as multiply-accumulates."""
        if node.training:
            return
        labelled = []
        for dim in dims:
            if isinstance(dim, int):
                factor *= dim
            else:
                labelled.append(dim)
        self.products.append(Product(node.name, node.module, factor, tuple(labelled)))

    def mark(self, node: Node) -> None:
        """Note that a node takes statistics over channels: those that are kept, once some are cut.

        Zeroing a channel is then not the same as removing it, so the masked model takes the
        statistics over the kept channels too.
        """
        self.marked.append(node.name)

    def follow(self, node: Node, attribute: str, heads: Tensor) -> None:
        """Let a module's integer attribute equal the number of `heads` that are kept."""
        self.followed.append(Followed(node.module, attribute, heads))

    # -- what layers do when tensors meet

    def collapse(self, layer: Layer, dims: Sequence[int], reason: str, node: Node) -> Layer:
        """Make a layer constant along `dims`: its labels there are cut together.

        Where nothing else varies the whole dimension would go at once: the labels freeze.
        """
        dims = [dim for dim in dims if varies(layer, dim)]
        if not dims:
            return layer
        if set(varying(layer)) <= set(dims):
            self.freeze(layer, reason, node)
        else:
            self.unite(layer, narrow_to(layer, set(varying(layer)) - set(dims)))
        return narrow_to(layer, set(varying(layer)) - set(dims))

    def pass_through(self, layers: Layers, dims: Sequence[int], reason: str, node: Node) -> Layers:
        """Keep the layers that do not vary along `dims`, collapsing those that do."""
        kept = [self.collapse(layer, dims, reason, node) for layer in layers]
        return tuple(layer for layer in kept if layer.numel() > 1)

    def meet(self, shape: Shape, operands: Sequence[Operand], node: Node) -> Layers:
        """Let tensors meet element by element, with broadcasting; return the result's layers.

        Labels that meet are united. A dimension that is labelled on one side and a plain extent on
        another may not be cut, unless the other is a constant fill.
        """
        ndim = len(shape)
        tensors = [
            Operand(tuple(pad(a, ndim) for a in o.layers), (1,) * (ndim - len(o.shape)) + o.shape)
            for o in operands
            if not o.fill
        ]
        met: list[Layer] = []
        for i, operand in enumerate(tensors):
            others = tensors[:i] + tensors[i + 1 :]
            plain = [
                d
                for d in range(ndim)
                if shape[d] > 1 and any(is_plain(other, d, shape[d]) for other in others)
            ]
            reason = "meets a tensor whose size is fixed"
            layers = self.pass_through(operand.layers, plain, reason, node)
            met = self._merge(met, layers) if i else list(layers)
        return tuple(met)

    def _merge(self, met: list[Layer], layers: Layers) -> list[Layer]:
        """Unite every new layer with those it shares a dimension with, or add it.

        Labels united over a dimension on which only one side varies are constant along it from
        then on, so the result keeps just the dimensions on which both vary.
        """
        met = list(met)
        free = set(range(len(met)))
        for layer in layers:
            dims = varying(layer)
            same = [i for i in sorted(free) if varying(met[i]) == dims]
            shared = same[:1] or [i for i in range(len(met)) if set(varying(met[i])) & set(dims)]
            if not shared:
                met.append(layer)
            for i in shared:
                self.unite(met[i], layer)
                both = set(varying(met[i])) & set(dims)
                met[i] = narrow_to(met[i], both)
                free.discard(i)
        return met

    def contract(self, layers: Layers, dim: int, size: int, other: Tensor, node: Node) -> Layers:
        """Sum over dimension `dim` against labels `other` of the other tensor, `[size]`.

        Returns the layers that survive: those that do not vary along `dim`.
        """
        touching = [layer for layer in layers if varies(layer, dim)]
        for layer in touching:
            self.unite(layer, spread(other, dim, layer.ndim))
        if not touching and size > 1:
            self.freeze(other, "is multiplied with a plain extent", node)
        return tuple(layer for layer in layers if not varies(layer, dim))

    def labels_along(self, ref: Ref, dim: int) -> Tensor | int:
        """Return the labels along one dimension, or its size where it is not labelled."""
        shape = self.shape(ref)
        dim %= len(shape)
        for layer in self.of(ref):
            if varies(layer, dim):
                return narrow_to(layer, {dim}).reshape(-1)
        return shape[dim]


def is_plain(operand: Operand, dim: int, size: int) -> bool:
    """Say whether a dimension has this size without carrying labels."""
    return operand.shape[dim] == size and not any(varies(a, dim) for a in operand.layers)


def varies(layer: Layer, dim: int) -> bool:
    """Say whether a layer varies along a dimension."""
    return layer.shape[dim] > 1


def varying(layer: Layer) -> tuple[int, ...]:
    """List the dimensions along which a layer varies."""
    return tuple(d for d, n in enumerate(layer.shape) if n > 1)


def narrow_to(layer: Layer, dims: set[int]) -> Layer:
    """Take the first slice along every dimension outside `dims`."""
    for d in varying(layer):
        if d not in dims:
            layer = layer.narrow(d, 0, 1)
    return layer


def pad(layer: Layer, ndim: int) -> Layer:
    """Prefix dimensions of size 1, as broadcasting does."""
    return layer.reshape((1,) * (ndim - layer.ndim) + tuple(layer.shape))


def spread(labels: Tensor, dim: int, ndim: int) -> Layer:
    """Lay a vector of labels along one of `ndim` dimensions: (3,) at 1 of 4 -> (1, 3, 1, 1)."""
    shape = [1] * ndim
    shape[dim] = labels.numel()
    return labels.reshape(shape)


def shrink(layer: Layer) -> Layer:
    """Drop the dimensions along which a layer is constant: it no longer varies there."""
    for d in varying(layer):
        head = layer.narrow(d, 0, 1)
        if bool((layer == head).all()):
            layer = head
    return layer
