"""Movement operators: run on the labels themselves, so there is no index arithmetic by hand."""

from collections.abc import Iterator
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from prunella.graph import Dim, Node, Path, Ref, Size, refs
from prunella.labels import (
    Extent,
    Labels,
    Layer,
    Layers,
    Operand,
    Shape,
    pad,
    shrink,
    spread,
    varies,
    varying,
)
from prunella.rules._registry import argument, resizes, rule


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
            for d in range(1, squeezed.ndim):  # (3, heads, head_dim): rows of the first, of both
                rows = squeezed.reshape(prod(squeezed.shape[:d]), -1)
                labels.equal_rows(rows, node, moved=True)
        made.append(moved)
    return _outermost(labels, labels.of(x), made, node)


def _outermost(labels: Labels, before: Layers, after: list[Layer], node: Node) -> Layers:
    """Where two layers end up in one dimension (heads times columns), keep the outer one.

    A dimension says one thing about its positions. What varies inside is repeated for every outer
    position, and stays.
    """
    order = sorted(range(len(after)), key=lambda i: varying(before[i]))
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
    """Keep the layers; a new extent holds the same everywhere, and takes on any size."""
    x, (output,) = node.args[0], node.outputs
    shape = labels.shapes[output]
    if x.name in labels.fills:
        labels.fills.add(output)
        return ()
    before = (1,) * (len(shape) - len(labels.shape(x))) + labels.shape(x)
    layers = [pad(a, len(shape)) for a in labels.of(x)]
    for d, (old, new) in enumerate(zip(before, shape, strict=True)):
        if old == 1 and new > 1:
            layers.append(spread(_new_extent(labels, node, d), d, len(shape)))
    return tuple(layers)


def _new_extent(labels: Labels, node: Node, dim: int) -> Tensor:
    """Return labels for an extent made of one: those it was read from, or ones of no axis.

    What it meets decides; whether the model's code can follow, `sizing` finds out.
    """
    size: Size | None = node.sizes.get((1, dim))
    if node.op == "aten.expand_as.default":
        size = Dim(node.args[1].name, dim)
    if isinstance(size, Dim):
        along = labels.labels_along(Ref(size.value), size.dim)
        if isinstance(along, Tensor):
            return along
    return labels.fresh(labels.shapes[node.outputs[0]][dim])


@rule("aten.repeat.default", "aten.tile.default")
def repeat(labels: Labels, node: Node) -> Layers:
    """Repeat the labels along the dimensions on which they vary; what repeats one is elastic."""
    x, times = node.args[:2]
    (output,) = node.outputs
    ndim = max(len(labels.shape(x)), len(times))
    times = (1,) * (ndim - len(times)) + tuple(times)
    before = (1,) * (ndim - len(labels.shape(x))) + labels.shape(x)
    padded = [pad(a, ndim) for a in labels.of(x)]
    made = [a.repeat([t if varies(a, d) else 1 for d, t in enumerate(times)]) for a in padded]
    if x.name in labels.fills:
        labels.fills.add(output)
        return ()
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


@rule("aten.cat.default", "aten.concat.default", "aten.concatenate.default")
def cat(labels: Labels, node: Node) -> Layers:
    """Concatenate the labels; those of the other dimensions meet."""
    tensors = [ref for ref in node.args[0] if labels.shape(ref) != (0,)] or list(node.args[0])
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
    parts = [part for part in parts if part.shape[dim]] or parts  # an empty one adds nothing
    parts = _by_heads(labels, parts, dim, node)
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
            for other in mine[1:]:
                labels.unite(mine[0], other)
            along.append(mine[0])
    met = labels.meet(across[0].shape, across, node)
    return (*met, _side_by_side(labels, along, dim, node)) if labelled else met


def _by_heads(labels: Labels, parts: list[Operand], dim: int, node: Node) -> list[Operand]:
    """Where one part is cut by whole heads only, the others are too (partial rotary embeddings)."""
    joint = {d for part in parts for a in part.layers if varies(a, dim) for d in varying(a)} - {dim}
    for part in parts:
        inside = any(varies(a, dim) for a in part.layers)
        if joint and not inside and any(joint <= set(varying(a)) for a in part.layers):
            reason = "is concatenated with what is cut as a whole"
            return [
                replace(p, layers=labels.pass_through(p.layers, [dim], reason, node)) for p in parts
            ]
    return parts


def _side_by_side(labels: Labels, parts: list[Layer], dim: int, node: Node) -> Layer:
    """Concatenate layers along `dim`; what only some vary along is collapsed, lest rows differ."""
    shared = set(varying(parts[0])).intersection(*(varying(part) for part in parts))
    whole = []
    for part in parts:
        alone = [d for d in varying(part) if d != dim and d not in shared]
        whole.append(labels.collapse(part, alone, "is concatenated across", node))
    return torch.cat(whole, dim)


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


@resizes("aten.split.Tensor", "aten.unsafe_split.Tensor")
def size_of_pieces(labels: Labels, node: Node) -> dict[Path, Extent]:
    """Tie the size of all pieces to the first."""
    dim = argument(node, 2, "dim", 0) % len(labels.shape(node.args[0]))
    first = node.outputs[0]
    return {(1,): Extent(first, dim, 0, labels.shapes[first][dim])}


@rule("aten.split_with_sizes.default", "aten.split.sizes", "aten.unbind.int")
def split(labels: Labels, node: Node) -> list[Layers]:
    """Cut the labels at the places the model asks for."""
    x = node.args[0]
    unbind = node.op == "aten.unbind.int"
    dim = argument(node, *((1, "dim", 0) if unbind else (2, "dim", 0))) % len(labels.shape(x))
    pieces = [_pieces(node, a, dim, unbind) for a in labels.of(x)]
    if unbind:
        labels.keep(x, dim, (0, labels.shape(x)[dim]), "is taken apart one by one", node)
    else:
        for layer, parts in zip(labels.of(x), pieces, strict=True):
            for part in parts if varies(layer, dim) else ():
                _even(labels, part, dim, node)
    return [tuple(p[i] for p in pieces if p[i].numel() > 1) for i, _ in enumerate(node.outputs)]


def _pieces(node: Node, layer: Layer, dim: int, unbind: bool) -> list[Layer]:
    count = len(node.outputs)
    if unbind:
        return list(layer.unbind(dim)) if varies(layer, dim) else [layer.squeeze(dim)] * count
    return list(layer.split(list(node.args[1]), dim)) if varies(layer, dim) else [layer] * count


def _even(labels: Labels, piece: Layer, dim: int, node: Node) -> None:
    """Where a piece of a dimension is one in each of several rows, all keep equally many."""
    if len(varying(piece)) > 1 and varies(piece, dim):
        labels.equal_rows(piece.movedim(dim, -1).reshape(-1, piece.shape[dim]), node, moved=True)


@resizes("aten.split_with_sizes.default", "aten.split.sizes")
def piece_sizes(labels: Labels, node: Node) -> dict[Path, Extent]:
    """Tie every size to the piece of that size."""
    dim = argument(node, 2, "dim", 0) % len(labels.shape(node.args[0]))
    return {
        (1, i): Extent(name, dim, 0, labels.shapes[name][dim])
        for i, name in enumerate(node.outputs)
    }


@rule("aten.slice.Tensor", "aten.select.int", "aten.narrow.default")
def pick(labels: Labels, node: Node) -> Layers:
    """Run the operator on the labels it takes from."""
    x, dim = node.args[0], argument(node, 1, "dim", 0)
    size = labels.shape(x)[dim]
    dim %= len(labels.shape(x))
    if node.op == "aten.select.int":
        index = node.args[2] % size
        labels.keep(x, dim, (index, index + 1), "is picked by its position", node)
    elif argument(node, 4, "step", 1) != 1 or argument(node, 3, "end") == -1:
        # Every other one; or all but the last, where -1 counts one whatever is cut before it.
        first = 0 if argument(node, 4, "step", 1) != 1 else size - 1
        labels.keep(x, dim, (first, size), "is picked by its position", node)
    made = []
    for layer in labels.of(x):
        if varies(layer, dim):
            taken = _call(node, layer)
            if node.op != "aten.select.int" and taken.shape[dim] < size:
                _even(labels, taken, dim, node)
            made.append(shrink(taken))
        else:
            made.append(layer.squeeze(dim) if node.op == "aten.select.int" else layer)
    return tuple(a for a in made if a.numel() > 1)


@resizes("aten.slice.Tensor", "aten.select.int", "aten.narrow.default")
def bounds(labels: Labels, node: Node) -> dict[Path, Extent]:
    """Tie start and end to what lies before them, or behind them where they are negative."""
    x, dim = node.args[0], argument(node, 1, "dim", 0)
    size = labels.shape(x)[dim]
    dim %= len(labels.shape(x))
    if argument(node, 4, "step", 1) != 1:
        return {}
    found: dict[Path, Extent] = {}
    for i in range(2, min(len(node.args), 3 if node.op == "aten.select.int" else 4)):
        place = node.args[i]
        if node.op == "aten.narrow.default" and i == 3:
            start = node.args[2] % size
            found[(3,)] = Extent(x.name, dim, start, start + place)
        elif isinstance(place, int) and -size < place < 0 and not (i == 3 and place == -1):
            found[(i,)] = Extent(x.name, dim, size + place, size, sign=-1)
        elif isinstance(place, int) and 0 < place < size:
            found[(i,)] = Extent(x.name, dim, 0, place)
    return found


@rule("aten.flip.default", "aten.roll.default")
def rearrange(labels: Labels, node: Node) -> Layers:
    """Run the operator on the labels; a labelled dimension it moves must stay whole."""
    x = node.args[0]
    made = []
    for layer in labels.of(x):
        shape = labels.shape(x)
        wide = layer.expand([n if varies(layer, d) else 1 for d, n in enumerate(shape)])
        made.append(_call(node, wide))
    for dim in node.args[1 if node.op == "aten.flip.default" else 2] or range(len(labels.shape(x))):
        dim %= len(labels.shape(x))
        labels.keep(x, dim, (0, labels.shape(x)[dim]), "is rearranged by a fixed amount", node)
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
