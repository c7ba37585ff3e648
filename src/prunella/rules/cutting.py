"""Parts of a tensor: labels are cut where the model cuts it; its sizes say where that is."""

import torch

from prunella.graph import Node, Path
from prunella.labels import Extent, Labels, Layer, Layers, shrink, varies, varying
from prunella.rules._registry import argument, resizes, rule, run_on


@rule("aten.chunk.default", "aten.split.Tensor", "aten.tensor_split.sections",
      "aten.unsafe_chunk.default", "aten.unsafe_split.Tensor", "aten.hsplit.int",
      "aten.vsplit.int", "aten.dsplit.int")  # fmt: skip
def chunk(labels: Labels, node: Node) -> list[Layers]:
    """Cut the labels into pieces, which keep equally many."""
    x = node.args[0]
    dim = _along(labels, node)
    made: list[list[Layer]] = [[] for _ in node.outputs]
    sizes = [labels.shapes[name][dim] for name in node.outputs]
    for layer in labels.of(x):
        pieces = layer.split(sizes, dim) if varies(layer, dim) else [layer] * len(sizes)
        if varies(layer, dim):
            if len(set(sizes)) > 1:
                labels.freeze(layer, "is cut into pieces of uneven size", node)
            else:
                rows = torch.stack([piece.reshape(-1) for piece in pieces])
                if labels.cut_dims(layer) == {dim}:  # every piece of every row
                    rows = torch.cat([a.movedim(dim, -1).reshape(-1, a.shape[dim]) for a in pieces])
                labels.equal_rows(rows, node, moved=True)
        for layers, piece in zip(made, pieces, strict=True):
            layers.append(piece)
    return [tuple(a for a in layers if a.numel() > 1) for layers in made]


def _along(labels: Labels, node: Node) -> int:
    """Return the dimension that is cut: an argument, or in the operator's name."""
    ndim = len(labels.shape(node.args[0]))
    named = {"hsplit": min(1, ndim - 1), "vsplit": 0, "dsplit": 2}.get(node.op.split(".")[1])
    return argument(node, 2, "dim", 0) % ndim if named is None else named


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


@rule("aten.tensor_split.indices", "aten.hsplit.array", "aten.vsplit.array", "aten.dsplit.array")
def split_at(labels: Labels, node: Node) -> list[Layers]:
    """Cut the labels at indices, which count from the start whatever is cut."""
    x, places, dim = node.args[0], list(node.args[1]), _along(labels, node)
    made: list[list[Layer]] = [[] for _ in node.outputs]
    for layer in labels.of(x):
        if varies(layer, dim):
            labels.freeze(layer, "is cut at places that the code spells out", node)
        pieces = layer.tensor_split(places, dim) if varies(layer, dim) else [layer] * len(made)
        for layers, piece in zip(made, pieces, strict=True):
            layers.append(piece)
    return [tuple(a for a in layers if a.numel() > 1) for layers in made]


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
            taken = run_on(node, layer)
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
