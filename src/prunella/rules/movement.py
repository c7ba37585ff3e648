"""Movement operators: run on the labels themselves, so there is no index arithmetic by hand."""

from collections.abc import Iterator

import torch
from torch import Tensor

from prunella.graph import Node, refs
from prunella.labels import Labels, Layer, Layers, Operand, Shape, pad, shrink, varies, varying
from prunella.rules._registry import argument, rule


@rule(
    *(
        f"aten.{op}"
        for op in """
        view.default reshape.default _unsafe_view.default flatten.using_ints unflatten.int
        squeeze.default squeeze.dim squeeze.dims unsqueeze.default view_as.default
        reshape_as.default _reshape_alias.default atleast_1d.default atleast_2d.default
        squeeze_.default squeeze_.dim unsqueeze_.default
        """.split()
    )
)
def reshape(labels: Labels, node: Node) -> Layers:
    """Reshape the labels; where a labelled dimension is cut into rows, they keep equally many."""
    x, (output,) = node.args[0], node.outputs
    before, after = labels.shape(x), labels.shapes[output]
    if x.name in labels.fills:
        labels.fills.add(output)
    made = []
    for layer in labels.of(x):
        moved = reshape_layer(layer, before, after)
        if len(varying(moved)) > len(varying(layer)):
            squeezed = moved.squeeze()
            labels.equal_rows(squeezed.reshape(-1, squeezed.shape[-1]), node, moved=True)
        made.append(moved)
    return tuple(a for a in made if a.numel() > 1)


def reshape_layer(layer: Layer, before: Shape, after: Shape) -> Layer:
    """Reshape a layer as its tensor is reshaped, expanding only the dimensions that get mixed."""
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
      "aten.adjoint.default", "aten.numpy_T.default", "aten.swapdims.default")  # fmt: skip
def permute(labels: Labels, node: Node) -> Layers:
    """Permute the layers' dimensions."""
    return tuple(_call(node, a) for a in labels.of(node.args[0]))


def _call(node: Node, layer: Tensor) -> Tensor:
    """Run the node's own operator on a layer in place of its first argument."""
    _, name, overload = node.op.split(".")
    function = getattr(getattr(torch.ops.aten, name.rstrip("_")), overload)
    result: Tensor = function(layer, *node.args[1:], **node.kwargs)
    return result


@rule("aten.expand.default", "aten.expand_as.default", "aten.broadcast_to.default")
def expand(labels: Labels, node: Node) -> Layers:
    """Keep the layers: they do not vary along the new extents."""
    x, (output,) = node.args[0], node.outputs
    if x.name in labels.fills:
        labels.fills.add(output)
    return tuple(pad(a, len(labels.shapes[output])) for a in labels.of(x))


@rule("aten.repeat.default", "aten.tile.default")
def repeat(labels: Labels, node: Node) -> Layers:
    """Repeat the labels along the dimensions on which they vary."""
    x, times = node.args[:2]
    ndim = max(len(labels.shape(x)), len(times))
    times = (1,) * (ndim - len(times)) + tuple(times)
    padded = [pad(a, ndim) for a in labels.of(x)]
    return tuple(a.repeat([t if varies(a, d) else 1 for d, t in enumerate(times)]) for a in padded)


@rule("aten.repeat_interleave.self_int")
def repeat_interleave(labels: Labels, node: Node) -> Layers:
    """Repeat every label along the dimension, where they vary on it."""
    x, times = node.args[:2]
    dim = argument(node, 2, "dim")
    if dim is None:
        return _stop(labels, node, "repeats the flattened tensor")
    dim %= len(labels.shape(x))
    return tuple(a.repeat_interleave(times, dim) if varies(a, dim) else a for a in labels.of(x))


@rule("aten.cat.default", "aten.concat.default", "aten.concatenate.default")
def cat(labels: Labels, node: Node) -> Layers:
    """Concatenate the labels; those of the other dimensions meet."""
    tensors = [ref for ref in node.args[0] if labels.shape(ref) != (0,)]
    dim = argument(node, 1, "dim", 0) % len(labels.shape(tensors[0]))
    return _join(labels, node, [labels.operand(ref) for ref in tensors], dim)


@rule("aten.stack.default")
def stack(labels: Labels, node: Node) -> Layers:
    """Join tensors along a new dimension: what they carry meets there."""
    dim = argument(node, 1, "dim", 0) % (len(labels.shape(node.args[0][0])) + 1)
    parts = [
        Operand(
            tuple(a.unsqueeze(dim) for a in part.layers),
            (*part.shape[:dim], 1, *part.shape[dim:]),
            part.fill,
        )
        for part in map(labels.operand, node.args[0])
    ]
    return _join(labels, node, parts, dim)


def _join(labels: Labels, node: Node, parts: list[Operand], dim: int) -> Layers:
    """Concatenate what varies along `dim`, let what does not meet.

    A part that is not labelled along `dim` gets labels of its own that may not be cut.
    """
    along: list[Tensor] = []
    across: list[Operand] = []
    labelled = any(varies(a, dim) for part in parts for a in part.layers)
    for part in parts:
        flat = tuple(1 if d == dim else n for d, n in enumerate(part.shape))
        mine = [a for a in part.layers if varies(a, dim)]
        rest = tuple(a for a in part.layers if not varies(a, dim))
        across.append(Operand(rest, flat, part.fill))
        if labelled and not mine:
            own = labels.fresh(part.shape[dim])
            labels.freeze(own, "is concatenated from a plain extent", node)
            mine = [own.reshape([-1 if d == dim else 1 for d in range(len(flat))])]
        if labelled:
            others = [d for d in range(len(flat)) if d != dim]
            for other in mine[1:]:
                labels.unite(mine[0], other)
            along.append(labels.collapse(mine[0], others, "is concatenated across", node))
    met = labels.meet(across[0].shape, across, node)
    return (*met, torch.cat(along, dim)) if labelled else met


@rule("aten.chunk.default", "aten.split.Tensor", "aten.tensor_split.sections",
      "aten.unsafe_chunk.default", "aten.unsafe_split.Tensor")  # fmt: skip
def chunk(labels: Labels, node: Node) -> list[Layers]:
    """Cut the labels into pieces, which keep equally many."""
    x = node.args[0]
    dim = argument(node, 2, "dim", 0) % len(labels.shape(x))
    made: list[list[Layer]] = [[] for _ in node.outputs]
    sizes = [labels.shapes[name][dim] for name in node.outputs]
    for layer in labels.of(x):
        pieces = layer.split(sizes, dim) if varies(layer, dim) else [layer] * len(sizes)
        if varies(layer, dim):
            if len(set(sizes)) > 1:
                labels.freeze(layer, "is cut into pieces of uneven size", node)
            else:
                rows = torch.stack([piece.reshape(-1) for piece in pieces])
                labels.equal_rows(rows, node, moved=True)
        for layers, piece in zip(made, pieces, strict=True):
            layers.append(piece)
    return [tuple(a for a in layers if a.numel() > 1) for layers in made]


@rule("aten.split_with_sizes.default", "aten.split.sizes", "aten.unbind.int")
def split(labels: Labels, node: Node) -> list[Layers]:
    """Cut the labels at places that are written into the model: all of them must stay."""
    x = node.args[0]
    unbind = node.op == "aten.unbind.int"
    dim = argument(node, *((1, "dim", 0) if unbind else (2, "dim", 0))) % len(labels.shape(x))
    for layer in labels.of(x):
        if varies(layer, dim):
            labels.freeze(layer, "is split at fixed places", node)
    pieces = [_pieces(node, a, dim, unbind) for a in labels.of(x)]
    return [tuple(p[i] for p in pieces if p[i].numel() > 1) for i, _ in enumerate(node.outputs)]


def _pieces(node: Node, layer: Layer, dim: int, unbind: bool) -> list[Layer]:
    count = len(node.outputs)
    if unbind:
        return list(layer.unbind(dim)) if varies(layer, dim) else [layer.squeeze(dim)] * count
    return list(layer.split(list(node.args[1]), dim)) if varies(layer, dim) else [layer] * count


@rule("aten.slice.Tensor", "aten.select.int", "aten.narrow.default")
def pick(labels: Labels, node: Node) -> Layers:
    """Run the operator on the labels it takes from; up to there, all must stay in place."""
    x, dim = node.args[0], argument(node, 1, "dim", 0)
    dim %= len(labels.shape(x))
    made = []
    for layer in labels.of(x):
        if varies(layer, dim):
            taken = _call(node, layer)
            if taken.numel() < layer.numel():
                last = (layer.reshape(-1)[:, None] == taken.reshape(-1)[None]).any(1).nonzero()
                first = layer.reshape(-1)[: int(last.max()) + 1] if len(last) else layer
                labels.freeze(first, "is picked from at fixed places", node)
            made.append(shrink(taken))
        else:
            made.append(layer.squeeze(dim) if node.op == "aten.select.int" else layer)
    return tuple(a for a in made if a.numel() > 1)


@rule("aten.flip.default", "aten.roll.default")
def rearrange(labels: Labels, node: Node) -> Layers:
    """Run the operator on the labels; a labelled dimension it moves must stay whole."""
    made = []
    for layer in labels.of(node.args[0]):
        shape = labels.shape(node.args[0])
        wide = layer.expand([n if varies(layer, d) else 1 for d, n in enumerate(shape)])
        moved = _call(node, wide)
        if not torch.equal(moved, wide):
            labels.freeze(layer, "is rearranged by a fixed amount", node)
        made.append(moved)
    return tuple(made)


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
