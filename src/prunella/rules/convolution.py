"""Convolutions: contract the input channels, bring in the output channels."""

from math import prod

from torch import Tensor

from prunella.graph import Node, Path, Ref
from prunella.labels import (
    Extent,
    Labels,
    Layers,
    Operand,
    dims_of,
    outermost,
    spread,
    varies,
    varying,
)
from prunella.rules._registry import argument, resizes, rule
from prunella.rules.products import is_weight


@rule("aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default",
      "aten.conv1d.padding", "aten.conv2d.padding", "aten.conv3d.padding")  # fmt: skip
def convolve(labels: Labels, node: Node) -> Layers:
    """Couple a convolution; weight `[out, in / conv_groups, *kernel]`."""
    return _convolve(labels, node, transposed=False)


@rule("aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
def convolve_transposed(labels: Labels, node: Node) -> Layers:
    """Couple a transposed convolution; weight `[in, out / conv_groups, *kernel]`."""
    return _convolve(labels, node, transposed=True)


@rule("aten.convolution.default")
def convolution(labels: Labels, node: Node) -> Layers:
    """Couple the general form of both."""
    return _convolve(labels, node, transposed=bool(argument(node, 6, "transposed", False)))


@resizes(
    "aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default",
    "aten.conv1d.padding", "aten.conv2d.padding", "aten.conv3d.padding",
    "aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input",
    "aten.convolution.default",
)  # fmt: skip
def conv_groups_left(labels: Labels, node: Node) -> dict[Path, Extent]:
    """Tie the number of conv groups to the input channels, where whole conv groups are cut."""
    x, weight = node.args[:2]
    index = 8 if node.op == "aten.convolution.default" else 6
    if len(node.args) <= index or node.args[index] == 1:
        return {}
    general = node.op == "aten.convolution.default"
    transposed = bool(argument(node, 6, "transposed", False)) if general else "transpose" in node.op
    channel = len(labels.shape(x)) - len(labels.shape(weight)[2:]) - 1
    channels, groups = labels.shape(x)[channel], node.args[index]
    rows, columns = labels.shape(weight)[0] // groups, labels.shape(weight)[1]
    if _by_block(rows, columns):
        return {}
    per = rows if transposed else columns
    return {(index,): Extent(x.name, channel, 0, channels, per=per)}


def _convolve(labels: Labels, node: Node, *, transposed: bool) -> Layers:
    x, weight = node.args[:2]
    bias = argument(node, 2, "bias")
    in_dim, out_dim = (0, 1) if transposed else (1, 0)
    kernel = labels.shape(weight)[2:]
    shape = labels.shapes[node.outputs[0]]
    ndim, channel = len(shape), len(shape) - len(kernel) - 1
    # From shapes, not from the argument: it changes with what is cut.
    channels = shape[channel] if transposed else labels.shape(x)[channel]
    conv_groups = channels // labels.shape(weight)[1]
    layers = labels.of(x)
    taken: dict[int, Tensor] = {}
    if not transposed:
        taken = {
            d: a
            for d in range(channel + 1, ndim)
            if (a := _taken(labels, node, channel, d)) is not None
        }
    for d, along in taken.items():
        layers = labels.contract(layers, d, along.numel(), along, node)
    grids = [d for d in range(ndim) if d > channel and not _is_apart(labels, node, channel, d)]
    layers = labels.pass_through(layers, grids, "is convolved along", node)
    if conv_groups == 1:
        ins, outs = _vector(labels, weight, in_dim, node), _vector(labels, weight, out_dim, node)
        rest = labels.contract(layers, channel, ins.numel(), ins, node)
        dims: list[Tensor | int] = [outs, ins]
    else:
        by_row, by_column = _grouped(labels, node, weight, conv_groups)
        ins, outs = (by_row, by_column) if transposed else (by_column, by_row)
        rest = labels.contract(layers, channel, ins.numel(), ins.reshape(-1), node)
        whole = not _by_block(by_row.shape[1], by_column.shape[1])
        dims = [by_row.reshape(-1), by_column.shape[1] if whole else by_column[0]]
    if isinstance(dims[1], Tensor) and not is_weight(labels, weight):
        labels.mark(
            node
        )  # what masking leaves of a channel counts, unless the weight is zero there
    for layer in labels.of(weight):
        if (
            varying(layer)
            and min(varying(layer)) > 1
            and min(varying(layer)) + channel - 1 not in taken
        ):
            labels.structural.append(layer.reshape(-1))
    places = enumerate(labels.shape(x) if transposed else shape)
    plain = prod(n for d, n in places if d != channel and d not in dims_of(rest))
    dims += [layer.reshape(-1) for layer in rest]
    dims += taken.values()
    steps = prod(n for i, n in enumerate(kernel, channel + 1) if i not in taken)
    labels.multiply(node, plain * steps, dims)
    made: Layers = (spread(outs.reshape(-1), channel, ndim),) if outs.numel() > 1 else ()
    if isinstance(bias, Ref) and made:
        wide = tuple(n if d == channel else 1 for d, n in enumerate(shape))
        tail = tuple(spread(a, channel, ndim) for a in labels.of(bias))
        made = labels.meet(wide, [Operand(made, wide), Operand(tail, wide)], node)
    return (*rest, *made)


def _is_apart(labels: Labels, node: Node, channel: int, dim: int) -> bool:
    """Say whether a convolution keeps the positions along a dimension apart: it is one wide."""
    x, weight = node.args[:2]
    stride = argument(node, 3, "stride", 1)
    step = stride if isinstance(stride, int) else stride[min(dim - channel, len(stride)) - 1]
    same = labels.shape(x)[dim] == labels.shapes[node.outputs[0]][dim]  # nothing is padded
    return bool(labels.shape(weight)[1 + dim - channel] == 1 and step == 1 and same)


def _taken(labels: Labels, node: Node, channel: int, dim: int) -> Tensor | None:
    """Return the labels of a kernel that takes all positions along a dimension at once.

    Such a convolution is a product along it, as of words with all of their embedding (TextCNN).
    """
    x, weight = node.args[:2]
    own = 1 + dim - channel
    padding = argument(node, 4, "padding", 0)
    if not isinstance(padding, int | str):
        padding = padding[min(dim - channel, len(padding)) - 1]
    size = labels.shape(x)[dim]
    if padding not in (0, "valid") or labels.shape(weight)[own] != size or size == 1:
        return None
    found = [labels.cut_dims(a) for a in map(labels.tight, labels.of(x)) if varies(a, dim)]
    along = labels.labels_along(weight, own)
    return along if isinstance(along, Tensor) and found and all(c == {dim} for c in found) else None


def _vector(labels: Labels, weight: Ref, dim: int, node: Node) -> Tensor:
    """Return the labels of a weight's dimension; of a plain one, labels that may not be cut."""
    for layer in labels.of(weight):
        # Computed from a flat vector it varies jointly over its dimensions: cut the outermost.
        if len(varying(layer)) > 1:
            inner = [d for d in varying(layer) if d != outermost(layer)]
            labels.collapse(layer, inner, "is part of a computed weight", node)
    tight = [a for a in map(labels.tight, labels.of(weight)) if varies(a, dim)]
    if tight:
        along = tight[0].reshape(-1)
    else:
        along = labels.fresh(labels.shape(weight)[dim])
        labels.freeze(along, "meets a side of a computed weight that cannot be cut", node)
        if along.numel() == 1:
            labels.structural.append(along)
    return along


def _grouped(labels: Labels, node: Node, weight: Ref, conv_groups: int) -> tuple[Tensor, Tensor]:
    """Couple a grouped convolution: the labels of the weight's first two dimensions, by conv group.

    The weight's rows (dimension 0) list the channels of all conv groups, its columns (dimension 1)
    those within one conv group. Where a conv group has several channels on both sides, each
    conv group keeps equally many of each (the same number, not the same positions). Where it has
    only one on a side (depthwise), whole conv groups are cut, both sides at once.
    """
    rows, size = labels.shape(weight)[:2]
    if _by_block(rows // conv_groups, size):
        by_column = labels.axis_by_blocks(weight, 1, conv_groups)
        if by_column is None:
            by_column = _vector(labels, weight, 1, node).expand(conv_groups, size)
        by_row = _vector(labels, weight, 0, node).reshape(conv_groups, -1)
        labels.equal_rows(by_column, node, moved=False)
        labels.equal_rows(by_row, node, moved=False)
    else:
        # One side has a single channel a conv group: cut whole conv groups.
        by_row = _vector(labels, weight, 0, node).reshape(conv_groups, -1)
        head = by_row[:, :1]
        labels.unite(by_row, head)
        by_column = head.expand(conv_groups, size)
        columns_kept = labels.labels_along(weight, 1)
        if isinstance(columns_kept, Tensor):
            labels.structural.append(columns_kept)
    return by_row, by_column


def _by_block(rows: int, columns: int) -> bool:
    """Say whether conv groups have several channels on both sides, so that each can lose some."""
    return columns > 1 and rows > 1
