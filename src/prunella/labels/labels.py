"""Label layers: the arithmetic by which channels are followed through a network.

Every index of every dimension of every parameter gets an integer label. A tensor in the graph
carries *layers*: integer arrays that broadcast to the tensor's shape and have size 1 along each
dimension on which they do not vary. A weight `[out, in, kh, kw]` carries `[out, 1, 1, 1]` and
`[1, in, 1, 1]`. Rules move layers as the operator moves the tensor, and record which labels must
be cut together (`unite`), which may not be cut (`freeze`) and which rows must keep equally many
(`equal_rows`). Nothing is decided here: `coupling` closes the record once, at the end.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunella.graph import Graph, Node, Ref, Value
from prunella.labels.roots import Roots
from prunella.plan import Axis, Frozen

Layer = Tensor
Layers = tuple[Layer, ...]
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Rows:
    """Label rows that must keep equally many; `moved` where a movement op cut them apart.

    `tie`: only because the model's own code reads one number for both (`sizing`). A row may hold a
    label several times.
    """

    labels: Tensor
    where: str
    moved: bool
    tie: bool = False


@dataclass(frozen=True, eq=False)
class Product:
    """Multiply-accumulates of one node: a factor times the sizes of the labelled dimensions.

    `sums`: the last of them is all that is summed over; of one channel alone nothing is counted.
    """

    node: str
    module: str
    factor: int
    dims: tuple[Tensor, ...]
    sums: bool = False


@dataclass(frozen=True, eq=False)
class Followed:
    """A module's integer attribute: the number of labels kept, divided by `per`."""

    module: str
    attribute: str
    heads: Tensor
    per: int = 1


@dataclass(frozen=True, slots=True)
class Extent:
    """How many positions are kept among `start..stop` along a dimension of a tensor.

    What a size argument of an operator has to be, once channels are cut: `sign` is -1 where the
    argument counts from the end, `per` divides where it counts several positions as one.
    """

    value: str
    dim: int
    start: int
    stop: int
    sign: int = 1
    per: int = 1


@dataclass(frozen=True, slots=True)
class Needed:
    """Positions along a dimension that may not be cut, because of `node`."""

    extent: Extent
    reason: str
    node: Node


@dataclass(frozen=True)
class Operand:
    """A tensor in an element-wise meeting.

    `whole`: dimensions inside rows (heads) that are cut as a whole.
    """

    layers: Layers
    shape: Shape
    whole: frozenset[int] = frozenset()


@dataclass
class Labels:
    """The record of one propagation; rules write, `coupling` reads.

    `shapes` are the shapes of all values: the graph's own, or those a plan would give. `inside`:
    of channels laid out as rows (heads) every row loses equally many, instead of rows going whole.
    """

    graph: Graph
    shapes: dict[str, Shape]
    count: int = 1
    constant: int = 0  # a label that is on no axis: it is always kept
    layers: dict[str, Layers] = field(default_factory=dict)
    axes: dict[Axis, Tensor] = field(default_factory=dict)
    edges: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    frozen: list[tuple[Tensor, Frozen]] = field(default_factory=list)
    structural: list[Tensor] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    followed: list[Followed] = field(default_factory=list)
    marked: list[str] = field(default_factory=list)
    roots: Roots = field(default_factory=Roots)
    joined: int = 0  # how many of the edges `roots` knows
    needed: list[Needed] = field(default_factory=list)
    inside: bool = False
    elastic: list[Tensor] = field(default_factory=list)  # of extents made of one, on no axis

    # -- what a rule asks

    def value(self, ref: Ref) -> Value:
        """Return the tensor that `ref` stands for."""
        return self.graph.values[ref.name]

    def shape(self, ref: Ref) -> Shape:
        """Return the size of the tensor that `ref` stands for."""
        return self.shapes[ref.name]

    def of(self, ref: Ref) -> Layers:
        """Return the layers of a tensor; parameters and buffers are labelled on first use."""
        if ref.name not in self.layers:
            self.layers[ref.name] = self._enter(self.value(ref))
        return tuple(self.tight(layer) for layer in self.layers[ref.name])

    def operand(self, ref: Ref) -> Operand:
        """Return a tensor as it takes part in a meeting."""
        layers = self.of(ref)
        whole = dims_of(self.layers[ref.name]) - dims_of(layers)
        return Operand(layers, self.shape(ref), frozenset(whole))

    def fresh(self, n: int) -> Tensor:
        """Make `n` new labels."""
        self.count += n
        return torch.arange(self.count - n, self.count)

    def stretch(self, n: int) -> Tensor:
        """Make labels for an extent made of one: what it meets decides what they are."""
        self.elastic.append(self.fresh(n))
        return self.elastic[-1]

    def is_elastic(self, layer: Layer) -> bool:
        """Say whether a layer is nothing but an extent made of one."""
        return bool(self.elastic) and bool(torch.isin(layer, torch.cat(self.elastic)).all())

    def _enter(self, value: Value) -> Layers:
        if value.kind not in ("parameter", "buffer") or not _is_labelled(value.dtype):
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

    def keep(self, ref: Ref, dim: int, span: tuple[int, int], reason: str, node: Node) -> None:
        """Forbid cutting the positions `span` (start, stop) along one dimension of a tensor.

        Where labels vary along that dimension alone they are those positions' labels. Where they
        vary along others too, only `sizing` can tell, when all labels are united, whether cutting
        them makes this dimension shorter (windows of heads) or another one.
        """
        self.needed.append(Needed(Extent(ref.name, dim, *span), reason, node))

    def equal_rows(self, labels: Tensor, node: Node, *, moved: bool) -> None:
        """Require every row of `labels`, `[rows, size]`, to keep equally many."""
        self.rows.append(Rows(labels, node.where(), moved))

    def multiply(
        self, node: Node, factor: int, dims: Sequence[Tensor | int], *, sums: bool = False
    ) -> None:
        """Count a product of `factor` and the sizes `dims` as multiply-accumulates.

        `sums`: nothing where the last of them, which is summed over, has length 1.
        """
        if node.training:
            return
        labelled = []
        for dim in dims:
            if isinstance(dim, int):
                factor *= dim
            else:
                labelled.append(dim)
        self.products.append(Product(node.name, node.module, factor, tuple(labelled), sums))

    def mark(self, node: Node) -> None:
        """Note that a node takes statistics over channels: those that are kept, once some are cut.

        Zeroing a channel is then not the same as removing it, so the masked model takes the
        statistics over the kept channels too.
        """
        self.marked.append(node.name)

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

    def tight(self, layer: Layer) -> Layer:
        """Narrow a layer to the dimensions along which it varies, as labels are united so far.

        Only what varies along several dimensions is looked at: whether it is rows (heads) that are
        cut whole, or positions that all rows have in common.
        """
        if len(varying(layer)) < 2:
            return layer
        self.roots.grow(self.count)
        if new := self.edges[self.joined :]:
            self.roots.join(
                torch.cat([a for a, _ in new]).numpy(), torch.cat([b for _, b in new]).numpy()
            )
            self.joined = len(self.edges)
        found = torch.from_numpy(self.roots.of(layer.numpy()))
        return narrow_to(layer, set(varying(shrink(found))))

    def meet(
        self,
        shape: Shape,
        operands: Sequence[Operand],
        node: Node,
        reason: str = "meets a tensor whose size is fixed",
    ) -> Layers:
        """Let tensors meet element by element, with broadcasting; return the result's layers.

        Labels that meet are united. A dimension that is labelled on one side and a plain extent on
        another may not be cut. What varies jointly over (heads, head_dim) and meets what varies
        along heads alone is cut by whole heads. So it is where it meets what varies along head_dim
        alone, whose labels all heads share: they freeze.
        """
        sides: list[Operand] = []
        whole: set[int] = set()  # where one side is cut by whole heads
        for operand in operands:
            padded = [pad(a, len(shape)) for a in operand.layers]
            tight = self._disentangle([self.tight(a) for a in padded])
            more = len(shape) - len(operand.shape)
            sides.append(Operand(tuple(tight), (1,) * more + operand.shape))
            whole |= dims_of(padded) - dims_of(tight) | {d + more for d in operand.whole}
        while conflict := self._conflict(sides, shape, whole):
            i, dim, rows = conflict
            why = _SHARED if dim in whole else _ROWS_STAY if rows else reason
            layers = self.pass_through(sides[i].layers, [dim], why, node)
            sides[i] = Operand(layers, sides[i].shape)
        met: dict[tuple[int, ...], Layer] = {}
        for layer in (layer for side in sides for layer in side.layers):
            first = met.setdefault(varying(layer), layer)
            if first is not layer:
                self.unite(first, layer)
        return tuple(met.values())

    def cut_dims(self, layer: Layer) -> set[int]:
        """Return the dimensions that may get shorter: of rows that stay, what is inside them."""
        return {innermost(layer)} if self.inside and varying(layer) else set(varying(layer))

    def _conflict(
        self, sides: Sequence[Operand], shape: Shape, whole: set[int]
    ) -> tuple[int, int, bool] | None:
        """Find a side, and a dimension along which it may not vary as long as others are there.

        Also says whether that dimension counts rows of which others lose something inside.
        """
        for i, side in enumerate(sides):
            others = [*sides[:i], *sides[i + 1 :]]
            for dim in sorted({d for layer in side.layers for d in self.cut_dims(layer)}):
                if any(is_plain(other, dim, shape[dim]) for other in others):
                    return i, dim, False
        return _row_side(sides) if self.inside else _joint_side(sides, whole)

    def _disentangle(self, layers: list[Layer]) -> list[Layer]:
        """Unite the layers of one tensor that vary along the same dimension.

        Where rows stay, several may have them in common.
        """
        apart: list[Layer] = []
        for layer in layers:
            for i, other in enumerate(apart):
                both = set(varying(layer)) & set(varying(other))
                if both and not (self.inside and both.isdisjoint(_innermosts(layer, other))):
                    self.unite(layer, other)
                    layer = apart[i] = narrow_to(layer, both)
            if not any(layer is other for other in apart):
                apart.append(layer)
        return apart

    def contract(self, layers: Layers, dim: int, size: int, other: Tensor, node: Node) -> Layers:
        """Sum over dimension `dim` against labels `other` of the other tensor, `[size]`.

        Returns the layers that survive: those that do not vary along `dim`. What varies jointly
        along others too (heads) is cut by those, and all of them share `other`.
        """
        tight = [self.tight(layer) for layer in layers]
        along = [layer for layer in tight if self.cut_dims(layer) == {dim}]
        for layer in along:
            self.unite(layer, spread(other, dim, layer.ndim))
        left = [layer for layer in tight if self.cut_dims(layer) != {dim}]
        if not along and size > 1:
            whole = any(varies(layer, dim) for layer in layers)
            reason = _SHARED if whole else "is multiplied with a plain extent"
            self.freeze(other, reason, node)
        return tuple(self.collapse(layer, [dim], "is multiplied along", node) for layer in left)

    def labels_along(self, ref: Ref, dim: int) -> Tensor | int:
        """Return the labels along one dimension, or its size where it is not labelled."""
        shape = self.shape(ref)
        dim %= len(shape)
        for layer in self.of(ref):
            if dim in self.cut_dims(layer):
                return narrow_to(layer, {dim}).reshape(-1)
        return shape[dim]


_SHARED = "is shared by all heads"
_ROWS_STAY = "counts heads, which all stay"


def _joint_side(sides: Sequence[Operand], whole: set[int]) -> tuple[int, int, bool] | None:
    """Find a side that varies jointly along a dimension that another side does not share fully.

    Returns the side and the dimension it may not vary along any longer: where the dimensions both
    have in common hold the outermost of either, the other dimensions; else those in common.
    """
    pairs = ((i, a, b) for i in range(len(sides)) for j in range(len(sides)) if i != j
             for a in sides[i].layers for b in sides[j].layers)  # fmt: skip
    for i, a, b in pairs:
        both = set(varying(a)) & set(varying(b))
        if both and varying(a) != varying(b):
            outer = both.issuperset({outermost(layer) for layer in (a, b)})
            for dim in sorted(set(varying(a)) - both if outer else both):
                whole.add(dim)
                return i, dim, False
    return None


def _row_side(sides: Sequence[Operand]) -> tuple[int, int, bool] | None:
    """Find a side that cannot be cut inside rows that stay, next to another side.

    Returns the side and the dimension it may not vary along any longer. Rows (heads) that meet what
    is the same for all of them lose the same positions. What counts the rows themselves stays.
    """
    pairs = ((i, a, b) for i in range(len(sides)) for j in range(len(sides)) if i != j
             for a in sides[i].layers for b in sides[j].layers)  # fmt: skip
    for i, a, b in pairs:
        mine, others = set(varying(a)), set(varying(b))
        inner, other = innermost(a), innermost(b)
        if inner in others and other != inner:  # `b` has rows of what `a` would cut
            return i, inner, True
        if inner == other and mine - others:
            return i, min(mine - others), False
    return None


def _innermosts(*layers: Layer) -> set[int]:
    return {innermost(layer) for layer in layers}


def dims_of(layers: Iterable[Layer]) -> set[int]:
    """Collect the dimensions along which any of the layers varies."""
    return {d for layer in layers for d in varying(layer)}


def outermost(layer: Layer) -> int:
    """Return the dimension that counts blocks of the others: heads, not positions in a head.

    Labels are numbered in order, so along it they are farthest apart, however it was permuted.
    """
    return max(varying(layer), key=lambda dim: _span(layer, dim))


def innermost(layer: Layer) -> int:
    """Return the dimension along which labels are closest: positions in a head."""
    return min(varying(layer), key=lambda dim: _span(layer, dim))


def _span(layer: Layer, dim: int) -> int:
    line = narrow_to(layer, {dim})
    return int(line.max() - line.min())


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


def _is_labelled(dtype: torch.dtype) -> bool:
    """Leave out integers: they count positions."""
    return dtype.is_floating_point or dtype.is_complex or dtype == torch.bool
