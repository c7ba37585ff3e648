"""Look-ups and writes by index: what an index counts must stay, other dimensions pass.

An index is a number that was computed for the original positions, so labels along the dimension it
counts freeze. Dimensions that are not indexed pass, and where something is written by index, what
is written meets its target there.
"""

from collections.abc import Sequence

import torch

from prunella.graph import Node, Ref, refs
from prunella.labels import Labels, Layer, Layers, Operand, Shape, varies
from prunella.rules._registry import argument, rule

_LOOKED_UP = "is looked up by index"
_SEARCHED = "is searched for positions"


# -- x[i, :, j]


@rule("aten.index.Tensor", "aten._unsafe_index.Tensor")
def index(labels: Labels, node: Node) -> Layers:
    """Index some dimensions; what the indices carry stands in their place."""
    places = _Places(labels, node)
    shape = labels.shapes[node.outputs[0]]
    found = [Operand(places.moved(labels.of(node.args[0])), places.wide(shape, indexed=False))]
    found += [places.laid(labels, ref, shape) for ref in places.integers]
    return labels.meet(shape, found, node)


@rule("aten.index_put.default", "aten.index_put_.default", "aten._unsafe_index_put.default",
      "aten._index_put_impl_.default")  # fmt: skip
def index_put(labels: Labels, node: Node) -> Layers:
    """Write at indices: the values meet what they are written over."""
    places, (x, _, values) = _Places(labels, node), node.args[:3]
    rest = labels.pass_through(labels.of(x), places.dims, "is written by index", node)
    shape = places.result(labels)
    operands = [Operand(places.moved(rest), shape), labels.operand(values)]
    operands += [places.laid(labels, ref, shape) for ref in places.integers]
    labels.meet(shape, operands, node)
    return rest


class _Places:
    """Which dimensions are indexed, and where in the result the indices' own dimensions are."""

    def __init__(self, labels: Labels, node: Node) -> None:
        self.node = node
        self.shape = labels.shape(node.args[0])
        self.dims: list[int] = []
        self.integers: list[Ref] = []
        at, runs, before = 0, 0, False
        self.count = 0  # dimensions of the indices, once broadcast
        for ref in node.args[1]:
            if ref is not None:
                is_mask = labels.value(ref).dtype in (torch.bool, torch.uint8)
                width = len(labels.shape(ref)) if is_mask else 1
                self.dims += range(at, at + width)
                self.count = max(self.count, 1 if is_mask else len(labels.shape(ref)))
                at += width
                if is_mask:
                    for layer in labels.of(ref):
                        labels.freeze(layer, _SEARCHED, node)
                else:
                    self.integers.append(ref)
            else:
                at += 1
            runs += (ref is not None) and not before
            before = ref is not None
        self.kept = [d for d in range(len(self.shape)) if d not in self.dims]
        # Indices side by side stand where they were; indices apart come first.
        self.first = sum(d < self.dims[0] for d in self.kept) if runs == 1 and self.dims else 0
        self._labels = labels

    def moved(self, layers: Layers) -> Layers:
        """Lay the layers of the dimensions that are not indexed out as the result has them."""
        kept = self._labels.pass_through(layers, self.dims, _LOOKED_UP, self.node)
        made = []
        for layer in kept:
            sizes = [layer.shape[d] for d in self.kept]
            sizes[self.first : self.first] = [1] * self.count
            made.append(layer.reshape(sizes))
        return tuple(made)

    def wide(self, shape: Shape, *, indexed: bool) -> Shape:
        """Return the result's shape with size 1 along the indices' dimensions, or the others."""
        inside = range(self.first, self.first + self.count)
        return tuple(n if (d in inside) == indexed else 1 for d, n in enumerate(shape))

    def laid(self, labels: Labels, ref: Ref, shape: Shape) -> Operand:
        """Lay an index out as the result has it."""
        more = self.count - len(labels.shape(ref))
        after = len(shape) - self.first - self.count

        def lay(sizes: Sequence[int]) -> Shape:
            return (1,) * (self.first + more) + tuple(sizes) + (1,) * after

        layers = tuple(layer.reshape(lay(layer.shape)) for layer in labels.of(ref))
        return Operand(layers, lay(labels.shape(ref)))

    def result(self, labels: Labels) -> Shape:
        """Return the shape of what the indices pick, as far as it can be told without masks."""
        shapes = [labels.shape(ref) for ref in self.integers]
        inside = tuple(torch.broadcast_shapes(*shapes)) if shapes else ()
        values = labels.shape(self.node.args[2])
        after = len(self.kept) - self.first
        if len(inside) < self.count or len(self.integers) < len(
            [ref for ref in self.node.args[1] if ref is not None]
        ):
            # How many a mask picks, the values say, if they have one for each.
            at = len(values) - after - 1
            inside = (values[at],) if at >= 0 else (1,)
        kept = [self.shape[d] for d in self.kept]
        return (*kept[: self.first], *inside, *kept[self.first :])


# -- along one dimension


@rule("aten.index_select.default")
def index_select(labels: Labels, node: Node) -> Layers:
    """Pick positions along one dimension."""
    x, dim, at = node.args[:3]
    shape = labels.shapes[node.outputs[0]]
    dim %= len(shape)
    layers = labels.pass_through(labels.of(x), [dim], _LOOKED_UP, node)
    own = tuple(_along(layer, dim, len(shape)) for layer in labels.of(at))
    return (*layers, *own)


@rule(*(f"aten.index_{name}.default" for name in "add add_ copy copy_ reduce reduce_".split()))
def index_add(labels: Labels, node: Node) -> Layers:
    """Write along one dimension; the others meet."""
    x, dim, at, source = node.args[:4]
    return _meet_but(labels, node, dim, [x, source], [at])


@rule("aten.index_fill.int_Scalar", "aten.index_fill_.int_Scalar", "aten.index_fill.int_Tensor",
      "aten.index_fill_.int_Tensor")  # fmt: skip
def index_fill(labels: Labels, node: Node) -> Layers:
    """Write a constant along one dimension."""
    x, dim, at = node.args[:3]
    return _meet_but(labels, node, dim, [x], [at])


@rule("aten.gather.default", "aten.take_along_dim.default")
def gather(labels: Labels, node: Node) -> Layers:
    """Look positions up along one dimension, other ones for each place in the others."""
    if "take_along_dim" in node.op:
        x, at, dim = node.args[0], node.args[1], argument(node, 2, "dim")
    else:
        x, dim, at = node.args[:3]
    if dim is None:
        return _stop(labels, node, _LOOKED_UP)
    shape, own = labels.shapes[node.outputs[0]], labels.shape(x)
    # Where the index is shorter only the first positions are looked at: they stay.
    ends = {d for d, n in enumerate(own) if d == dim % len(own) or n != shape[d]}
    return labels.meet(shape, [_beside(labels, node, x, ends), labels.operand(at)], node)


@rule(
    *(
        f"aten.{name}{end}.{overload}"
        for name in ("scatter", "scatter_add", "scatter_reduce")
        for end in ("", "_")
        for overload in "src value reduce value_reduce default two".split()
    )
)
def scatter(labels: Labels, node: Node) -> Layers:
    """Write along one dimension, at other positions for each place in the others."""
    x, dim, at = node.args[:3]
    source = argument(node, 3, "src")
    sources = [ref for ref in (at, source) if isinstance(ref, Ref)]
    return _meet_but(labels, node, dim, [x, *sources], [])


def _meet_but(
    labels: Labels, node: Node, dim: int, tensors: list[Ref], indices: list[Ref]
) -> Layers:
    """Let tensors meet along all dimensions but one; return the layers of the first.

    The indices count positions of that dimension only.
    """
    shape = labels.shape(tensors[0])
    for ref in indices:
        for layer in labels.of(ref):
            labels.freeze(layer, "says where to write", node)
    # Along a dimension that is shorter in one of them only the first positions meet: they stay.
    ends = {
        d
        for d, n in enumerate(shape)
        if d == dim % len(shape) or any(labels.shape(ref)[d] != n for ref in tensors)
    }
    beside = [_beside(labels, node, ref, ends) for ref in tensors]
    labels.meet(tuple(1 if d in ends else n for d, n in enumerate(shape)), beside, node)
    return beside[0].layers


def _beside(labels: Labels, node: Node, ref: Ref, ends: set[int]) -> Operand:
    """Return a tensor as it meets others along all dimensions but some."""
    layers = labels.pass_through(labels.of(ref), sorted(ends), _LOOKED_UP, node)
    return Operand(layers, tuple(1 if d in ends else n for d, n in enumerate(labels.shape(ref))))


def _along(layer: Layer, dim: int, ndim: int) -> Layer:
    return layer.reshape([layer.numel() if d == dim else 1 for d in range(ndim)])


# -- masks


@rule("aten.masked_scatter.default", "aten.masked_scatter_.default")
def masked_scatter(labels: Labels, node: Node) -> Layers:
    """Write one after the other where a mask says: rows, if the mask is the same along them."""
    x, mask, source = node.args[:3]
    shape, given = labels.shape(x), labels.shape(source)
    last = len(shape) - 1
    rows = len(given) > 0 and given[-1] == shape[-1] and _repeats(labels, mask, -1)
    if not rows:
        return _stop(labels, node, "is written where a mask says")
    operands = []
    for ref in (x, mask, source):
        outer = range(len(labels.shape(ref)) - 1)
        kept = labels.pass_through(labels.of(ref), outer, "is written where a mask says", node)
        layers = tuple(_along(layer, last, last + 1) for layer in kept)
        operands.append(Operand(layers, (1,) * last + shape[-1:]))
    return labels.meet((1,) * last + shape[-1:], operands, node)


def _repeats(labels: Labels, ref: Ref, dim: int) -> bool:
    """Say whether a tensor was made by repeating one position along a dimension."""
    makers = {name: node for node in labels.graph.nodes for name in node.outputs}
    while (node := makers.get(ref.name)) is not None:
        x = node.args[0]
        name = node.op.split(".")[1]
        if name in ("expand", "expand_as", "broadcast_to"):
            return labels.shape(x)[dim] == 1
        if name not in ("to", "_to_copy", "clone", "contiguous", "alias", "type_as", "detach"):
            return False
        ref = x
    return False


@rule(
    *(
        f"aten.{op}"
        for op in """
        masked_select.default nonzero.default nonzero_numpy.default nonzero_static.default
        argwhere.default where.default take.default put.default put_.default unique_dim.default
        _unique2.default _unique.default unique_consecutive.default bincount.default histc.default
        histogram.bin_ct as_strided.default as_strided_.default
        """.split()
    )
)
def find(labels: Labels, node: Node) -> list[Layers]:
    """Hold in place what positions are counted along."""
    _stop(labels, node, _SEARCHED)
    return [() for _ in node.outputs]


def _stop(labels: Labels, node: Node, reason: str) -> Layers:
    for ref in refs((node.args, node.kwargs)):
        for layer in labels.of(ref):
            labels.freeze(layer, reason, node)
    return ()


# -- numbers that stand for positions


@rule("aten.one_hot.default")
def one_hot(labels: Labels, node: Node) -> Layers:
    """Add a dimension, which says what the number was."""
    return tuple(layer.unsqueeze(-1) for layer in labels.of(node.args[0]))


@rule("aten.bucketize.Tensor", "aten.searchsorted.Tensor")
def bucketize(labels: Labels, node: Node) -> Layers:
    """Let values pass; what they are sorted into must stay."""
    x, edges = node.args[:2] if "bucketize" in node.op else node.args[1::-1]
    for layer in labels.of(edges):
        labels.freeze(layer, _SEARCHED, node)
    if len(labels.shape(edges)) > 1:
        return labels.pass_through(labels.of(x), range(len(labels.shape(x))), _SEARCHED, node)
    return labels.of(x)


@rule("aten.repeat_interleave.self_Tensor")
def repeat_each(labels: Labels, node: Node) -> Layers:
    """Repeat positions as often as a tensor says."""
    x, dim = node.args[0], argument(node, 2, "dim")
    if dim is None:
        return _stop(labels, node, _LOOKED_UP)
    return labels.pass_through(labels.of(x), [dim % len(labels.shape(x))], _LOOKED_UP, node)


@rule("aten.meshgrid.default", "aten.meshgrid.indexing")
def meshgrid(labels: Labels, node: Node) -> list[Layers]:
    """Lay vectors out along the dimensions of a grid."""
    order = list(range(len(node.args[0])))
    if argument(node, 1, "indexing", "ij") == "xy":
        order[:2] = order[1::-1]
    made = tuple(
        _along(layer, d, len(order))
        for d, ref in zip(order, node.args[0], strict=True)
        for layer in labels.of(ref)
    )
    return [made for _ in node.outputs]


# -- diagonals and triangles


@rule("aten.tril.default", "aten.triu.default", "aten.tril_.default", "aten.triu_.default")
def triangle(labels: Labels, node: Node) -> Layers:
    """Zero one side of the diagonal of the last two dimensions."""
    x = node.args[0]
    ndim = len(labels.shape(x))
    return labels.pass_through(labels.of(x), [ndim - 2, ndim - 1], "has a diagonal", node)


@rule("aten.diagonal.default", "aten.linalg_diagonal.default")
def diagonal(labels: Labels, node: Node) -> Layers:
    """Take the diagonal of two dimensions, as the last one."""
    x = node.args[0]
    ndim = len(labels.shape(x))
    first, second = (0, 1) if node.op == "aten.diagonal.default" else (-2, -1)
    dims = [argument(node, 2, "dim1", first) % ndim, argument(node, 3, "dim2", second) % ndim]
    kept = labels.pass_through(labels.of(x), dims, "has a diagonal", node)
    rest = [d for d in range(ndim) if d not in dims]
    return tuple(a.reshape([*(a.shape[d] for d in rest), 1]) for a in kept)


# -- windows that overlap


@rule("aten.unfold.default")
def unfold(labels: Labels, node: Node) -> Layers:
    """Cut a dimension into windows, as a new last dimension."""
    x, dim = node.args[:2]
    kept = labels.pass_through(
        labels.of(x), [dim % len(labels.shape(x))], "is cut into windows", node
    )
    return tuple(layer.unsqueeze(-1) for layer in kept)


@rule("aten.im2col.default")
def im2col(labels: Labels, node: Node) -> Layers:
    """Turn images into columns: every channel makes one row for each place in the kernel."""
    x, kernel = node.args[:2]
    ndim = len(labels.shape(x))
    kept = labels.pass_through(labels.of(x), [ndim - 2, ndim - 1], "is cut into windows", node)
    made = []
    for layer in kept:
        rows = layer.squeeze(-1)
        at = ndim - 3
        places = kernel[0] * kernel[-1]
        made.append(rows.repeat_interleave(places, at) if varies(rows, at) else rows)
    return tuple(made)


@rule("aten.col2im.default")
def col2im(labels: Labels, node: Node) -> Layers:
    """Turn columns into images: the rows of one channel are cut together."""
    x, _, kernel = node.args[:3]
    at = len(labels.shape(x)) - 2
    kept = labels.pass_through(labels.of(x), [at + 1], "is put together from windows", node)
    made = []
    for layer in kept:
        if varies(layer, at):
            rows = layer.unflatten(at, (-1, kernel[0] * kernel[-1]))
            labels.unite(rows, rows.narrow(at + 1, 0, 1))
            layer = rows.select(at + 1, 0)
        made.append(layer.unsqueeze(-1))
    return tuple(a for a in made if a.numel() > 1)
