"""Movement operators: run on the labels themselves, so there is no index arithmetic by hand."""

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from prunella.graph import Dim, Node, Path, Ref, Size, refs
from prunella.labels import (
    Extent,
    Labels,
    Layer,
    Layers,
    Shape,
    pad,
    shrink,
    spread,
    varies,
    varying,
)
from prunella.rules._registry import argument, resizes, rule, run_on


@rule(
    *(
        f"aten.{op}"
        for op in """
        view.default reshape.default _unsafe_view.default flatten.using_ints unflatten.int
        squeeze.default squeeze.dim squeeze.dims unsqueeze.default view_as.default
        reshape_as.default _reshape_alias.default atleast_1d.default atleast_2d.default
        squeeze_.default squeeze_.dim unsqueeze_.default ravel.default atleast_3d.default
        """.split()
    )
)
def reshape(labels: Labels, node: Node) -> Layers:
    """Reshape the labels; where a labelled dimension is cut into rows, they keep equally many."""
    x, (output,) = node.args[0], node.outputs
    before, after = labels.shape(x), labels.shapes[output]
    made = []
    for layer in labels.of(x):
        moved = reshape_layer(layer, before, after)
        if len(varying(moved)) > len(varying(layer)):
            squeezed = moved.squeeze()
            for d in range(1, squeezed.ndim):  # (3, heads, head_dim): rows of the first, of both
                rows = squeezed.reshape(prod(squeezed.shape[:d]), -1)
                labels.equal_rows(rows, node, moved=True)
        made.append(moved)
    return _outermost(labels, labels.of(x), made, node)


def _outermost(labels: Labels, before: Layers, after: list[Layer], node: Node) -> Layers:
    """Where two layers end up in one dimension (heads times columns), keep the outer one.

    A dimension says one thing about its positions. What varies inside is repeated for every outer
    position, and stays. So does what was only expanded (queries for every sample): heads go first.
    """
    order = sorted(
        range(len(after)), key=lambda i: (labels.is_elastic(before[i]), varying(before[i]))
    )
    taken: set[int] = set()
    kept = []
    for i in order:
        dims = set(varying(after[i]))
        if dims & taken:
            labels.freeze(after[i], "is repeated within another dimension", node)
        elif dims:
            taken |= dims
            kept.append(after[i])
    return tuple(kept)


@resizes(
    *(
        f"aten.{op}"
        for op in """
        view.default reshape.default _unsafe_view.default expand.default broadcast_to.default
        """.split()
    )
)
def target(labels: Labels, node: Node) -> dict[Path, Extent]:
    """Tie every number of the target shape to the output's dimension."""
    return _target(labels, node, 1, 0)


@resizes("aten.unflatten.int")
def target_of_part(labels: Labels, node: Node) -> dict[Path, Extent]:
    """Tie the numbers that one dimension is cut into to the output's dimensions."""
    return _target(labels, node, 2, node.args[1] % len(labels.shape(node.args[0])))


def _target(labels: Labels, node: Node, at: int, first: int) -> dict[Path, Extent]:
    (output,) = node.outputs
    shape = labels.shapes[output]
    numbers = node.args[at]
    return {
        (at, i): Extent(output, first + i, 0, shape[first + i])
        for i, number in enumerate(numbers)
        if isinstance(number, int) and number != -1
    }


def reshape_layer(layer: Layer, before: Shape, after: Shape) -> Layer:
    """Reshape a layer as its tensor is reshaped, expanding only the dimensions that get mixed."""
    if 0 in before:  # nothing was found in a recorded run: any number of rows stands for none
        lost = prod(n for n in after if n) or 1
        before = tuple(n or lost for n in before)
        found = prod(before)
        after = tuple(n or found // lost for n in after)
    wide: list[int] = []
    target: list[int] = []
    for ins, outs in _segments(before, after):
        moves = any(varies(layer, d) for d in ins)
        wide += [before[d] if moves else 1 for d in ins]
        target += [after[d] if moves else 1 for d in outs]
    return shrink(layer.expand(wide).reshape(target))


def _segments(before: Shape, after: Shape) -> Iterator[tuple[list[int], list[int]]]:
    """Cut two shapes into runs of equal product: (2, 3, 4) -> (6, 4) is (2, 3)->(6), (4)->(4)."""
    i = j = 0
    while i < len(before) or j < len(after):
        ins: list[int] = []
        outs: list[int] = []
        m = n = 1
        while True:
            if m <= n and i < len(before) and (m < n or not ins):
                m *= before[i]
                ins.append(i)
                i += 1
            elif j < len(after) and (n < m or not outs):
                n *= after[j]
                outs.append(j)
                j += 1
            elif m == n or (i == len(before) and j == len(after)):
                break
            elif i < len(before):
                m *= before[i]
                ins.append(i)
                i += 1
            else:
                n *= after[j]
                outs.append(j)
                j += 1
        yield ins, outs


@rule("aten.permute.default", "aten.transpose.int", "aten.t.default", "aten.movedim.intlist",
      "aten.movedim.int", "aten.swapaxes.default", "aten.transpose_.int", "aten.mT.default",
      "aten.adjoint.default", "aten.numpy_T.default", "aten.swapdims.default",
      "aten.moveaxis.int", "aten.moveaxis.intlist", "aten.matrix_H.default",
      "aten.swapaxes_.default", "aten.swapdims_.default", "aten.t_.default")  # fmt: skip
def permute(labels: Labels, node: Node) -> Layers:
    """Permute the layers' dimensions."""
    return tuple(run_on(node, a) for a in labels.of(node.args[0]))


@rule("aten.expand.default", "aten.expand_as.default", "aten.broadcast_to.default")
def expand(labels: Labels, node: Node) -> Layers:
    """Keep the layers; a new extent holds the same everywhere, and takes on any size."""
    x, (output,) = node.args[0], node.outputs
    shape = labels.shapes[output]
    before = (1,) * (len(shape) - len(labels.shape(x))) + labels.shape(x)
    layers = [pad(a, len(shape)) for a in labels.of(x)]
    for d, (old, new) in enumerate(zip(before, shape, strict=True)):
        if old == 1 and new > 1:
            layers.append(_new_layer(labels, node, d))
    return tuple(layers)


def _new_layer(labels: Labels, node: Node, dim: int) -> Layer:
    """Return the layer of an extent made of one; what takes after rows does so in all of them."""
    if labels.inside and node.op == "aten.expand_as.default":
        for layer in labels.of(node.args[1]):
            if labels.cut_dims(layer) == {dim}:
                return layer
    return spread(_new_extent(labels, node, dim), dim, len(labels.shapes[node.outputs[0]]))


def _new_extent(labels: Labels, node: Node, dim: int) -> Tensor:
    """Return labels for an extent made of one: those it was read from, or ones of no axis.

    What it meets decides; whether the model's code can follow, `sizing` finds out.
    """
    shape = labels.shapes[node.outputs[0]]
    if node.op == "aten.expand_as.default":
        size: Size | None = Dim(node.args[1].name, dim)
    else:
        size = node.sizes.get((1, dim - (len(shape) - len(node.args[1]))))
    if isinstance(size, Dim):
        along = labels.labels_along(Ref(size.value), size.dim)
        if isinstance(along, Tensor):
            return along
    return labels.stretch(shape[dim])


@rule("aten.repeat.default", "aten.tile.default")
def repeat(labels: Labels, node: Node) -> Layers:
    """Repeat the labels along the dimensions on which they vary; what repeats one is elastic."""
    x, times = node.args[:2]
    ndim = max(len(labels.shape(x)), len(times))
    times = (1,) * (ndim - len(times)) + tuple(times)
    before = (1,) * (ndim - len(labels.shape(x))) + labels.shape(x)
    padded = [pad(a, ndim) for a in labels.of(x)]
    made = [a.repeat([t if varies(a, d) else 1 for d, t in enumerate(times)]) for a in padded]
    for d, (old, n) in enumerate(zip(before, times, strict=True)):
        if old == 1 and n > 1:
            made.append(spread(_new_extent(labels, node, d), d, ndim))
    return tuple(made)


@resizes("aten.repeat.default", "aten.tile.default")
def times_of_one(labels: Labels, node: Node) -> dict[Path, Extent]:
    """Tie how often a single position is repeated to the extent that this makes."""
    x, (output,) = node.args[0], node.outputs
    shape = labels.shapes[output]
    before = (1,) * (len(shape) - len(labels.shape(x))) + labels.shape(x)
    first = len(shape) - len(node.args[1])
    return {
        (1, d - first): Extent(output, d, 0, shape[d])
        for d in range(first, len(shape))
        if before[d] == 1 and shape[d] > 1
    }


@rule("aten.repeat_interleave.self_int")
def repeat_interleave(labels: Labels, node: Node) -> Layers:
    """Repeat every label along the dimension, where they vary on it."""
    x, times = node.args[:2]
    dim = argument(node, 2, "dim")
    if dim is None:
        return _stop(labels, node, "repeats the flattened tensor")
    dim %= len(labels.shape(x))
    return tuple(a.repeat_interleave(times, dim) if varies(a, dim) else a for a in labels.of(x))


@rule("aten.flip.default", "aten.fliplr.default", "aten.flipud.default", "aten.roll.default")
def rearrange(labels: Labels, node: Node) -> Layers:
    """Run the operator on the labels; a labelled dimension it moves must stay whole."""
    x = node.args[0]
    ndim = len(labels.shape(x))
    moved = _FLIPS.get(node.op) or argument(node, 2 if "roll" in node.op else 1, "dims")
    made = []
    for layer in labels.of(x):
        shape = labels.shape(x)
        wide = layer.expand([n if varies(layer, d) else 1 for d, n in enumerate(shape)])
        made.append(run_on(node, wide))
    for dim in moved or range(ndim):
        dim %= ndim
        labels.keep(x, dim, (0, labels.shape(x)[dim]), "is rearranged by a fixed amount", node)
    return tuple(made)


_FLIPS = {"aten.flipud.default": (0,), "aten.fliplr.default": (1,)}


@rule("aten.pad.default", "aten.constant_pad_nd.default", "aten.reflection_pad1d.default",
      "aten.reflection_pad2d.default", "aten.reflection_pad3d.default",
      "aten.replication_pad1d.default", "aten.replication_pad2d.default",
      "aten.replication_pad3d.default")  # fmt: skip
def pad_edges(labels: Labels, node: Node) -> Layers:
    """Put labels that may not be cut at the padded edges: so many are always added.

    Padding that repeats what it finds ties the whole dimension.
    """
    x, widths = node.args[:2]
    ndim = len(labels.shape(x))
    edges = {ndim - 1 - i // 2: widths[i : i + 2] for i in range(0, len(widths), 2)}
    padded = [d for d, (before, after) in edges.items() if before or after]
    constant = "constant" in (node.op.split(".")[1], argument(node, 2, "mode", "constant"))
    if not constant or any(n < 0 for n in widths):
        return labels.pass_through(labels.of(x), padded, "is padded by what it holds", node)
    layers = labels.of(x)
    for dim in padded:
        rest = [d for d in range(ndim) if d != dim]
        layers = tuple(
            _pad(labels, labels.collapse(a, rest, "is padded", node), dim, edges[dim], node)
            if varies(a, dim)
            else a
            for a in layers
        )
    return layers


def _pad(labels: Labels, layer: Layer, dim: int, widths: tuple[int, int], node: Node) -> Layer:
    shape = [-1 if d == dim else 1 for d in range(layer.ndim)]
    ends = [labels.fresh(n).reshape(shape) for n in widths]
    for end in ends:
        labels.freeze(end, "is added by padding", node)
    return torch.cat([ends[0], layer, ends[1]], dim)


@rule("aten.pixel_shuffle.default")
def pixel_shuffle(labels: Labels, node: Node) -> Layers:
    """Unite the r*r input channels that make one output channel."""
    x, r = node.args[:2]
    dim = len(labels.shape(x)) - 3
    made = []
    for layer in labels.pass_through(labels.of(x), [dim + 1, dim + 2], "is shuffled", node):
        if varies(layer, dim):
            rows = layer.unflatten(dim, (-1, r * r))
            labels.unite(rows, rows.narrow(dim + 1, 0, 1))
            layer = rows.select(dim + 1, 0)
        made.append(layer)
    return tuple(a for a in made if a.numel() > 1)


@rule("aten.pixel_unshuffle.default")
def pixel_unshuffle(labels: Labels, node: Node) -> Layers:
    """Every input channel makes r*r output channels."""
    x, r = node.args[:2]
    dim = len(labels.shape(x)) - 3
    layers = labels.pass_through(labels.of(x), [dim + 1, dim + 2], "is unshuffled", node)
    return tuple(a.repeat_interleave(r * r, dim) if varies(a, dim) else a for a in layers)


@rule("aten.channel_shuffle.default", "aten.native_channel_shuffle.default")
def channel_shuffle(labels: Labels, node: Node) -> Layers:
    """Interleave the channels of the conv groups, which keep equally many."""
    x, groups = node.args[:2]
    made = []
    for layer in labels.of(x):
        if varies(layer, 1):
            rows = layer.unflatten(1, (groups, -1))
            labels.equal_rows(rows.reshape(groups, -1), node, moved=True)
            layer = rows.transpose(1, 2).flatten(1, 2)
        made.append(layer)
    return tuple(made)


def _stop(labels: Labels, node: Node, reason: str) -> Layers:
    for ref in refs(node.args):
        for layer in labels.of(ref):
            labels.freeze(layer, reason, node)
    return ()
