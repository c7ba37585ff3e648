"""Linear layers, matrix products and look-ups."""

from math import prod

from torch import Tensor

from prunella.graph import Node, Ref
from prunella.labels import Labels, Layer, Layers, Operand, Shape, pad, spread, varies, varying
from prunella.rules._registry import argument, no_rule, rule


@rule("aten.linear.default")
def linear(labels: Labels, node: Node) -> Layers:
    """Contract the last dimension with the weight `[out, in]`."""
    x, weight = node.args[:2]
    bias = argument(node, 2, "bias")
    shape = labels.shapes[node.outputs[0]]
    ndim, size = len(shape), labels.shape(x)[-1]
    ins, outs = labels.labels_along(weight, 1), labels.labels_along(weight, 0)
    labels.multiply(node, prod(shape[:-1]), [outs, ins])
    if isinstance(ins, Tensor):
        rest = labels.contract(labels.of(x), ndim - 1, size, ins, node)
    else:
        rest = labels.pass_through(labels.of(x), [ndim - 1], "is multiplied as a whole", node)
    made: Layers = (spread(outs, ndim - 1, ndim),) if isinstance(outs, Tensor) else ()
    if isinstance(bias, Ref) and made:
        wide = (1,) * (ndim - 1) + (shape[-1],)
        tail = tuple(pad(a, ndim) for a in labels.of(bias))
        made = labels.meet(wide, [Operand(made, wide), Operand(tail, wide)], node)
    return (*rest, *made)


@rule("aten.matmul.default", "aten.mm.default", "aten.bmm.default")
def matmul(labels: Labels, node: Node) -> Layers:
    """Contract the last dimension of one tensor with the second to last of the other."""
    return _matmul(labels, node, node.args[0], node.args[1])


@rule("aten.addmm.default", "aten.baddbmm.default")
def addmm(labels: Labels, node: Node) -> Layers:
    """Multiply, then add."""
    bias, a, b = node.args[:3]
    shape = labels.shapes[node.outputs[0]]
    product = Operand(_matmul(labels, node, a, b), shape)
    return labels.meet(shape, [product, labels.operand(bias)], node)


def _matmul(labels: Labels, node: Node, a: Ref, b: Ref) -> Layers:
    shape_a, shape_b = labels.shape(a), labels.shape(b)
    if len(shape_a) < 2 or len(shape_b) < 2:
        return _vectors(labels, node, [a, b])
    shape = labels.shapes[node.outputs[0]]
    ndim = len(shape)
    inner = labels.labels_along(a, -1)
    if isinstance(inner, int):
        inner = labels.labels_along(b, -2)
    batch = [
        max((_along(labels, r, d - ndim) for r in (a, b)), key=lambda n: isinstance(n, Tensor))
        if max(labels.shape(r)[d - ndim] for r in (a, b) if len(labels.shape(r)) >= ndim - d) > 1
        else 1
        for d in range(ndim - 2)
    ]
    labels.multiply(
        node, 1, [*batch, labels.labels_along(a, -2), inner, labels.labels_along(b, -1)]
    )
    # Lay both out as [..., rows, inner, columns] and let them meet; then sum over `inner`.
    left = _unsqueeze(labels.of(a), shape_a, len(shape_a), ndim + 1)
    right = _unsqueeze(labels.of(b), shape_b, len(shape_b) - 2, ndim + 1)
    wide = (*shape[:-1], shape_a[-1], shape[-1])
    met = labels.meet(wide, [left, right], node)
    return tuple(a.squeeze(ndim - 1) for a in _sum_over(labels, met, ndim - 1))


def _sum_over(labels: Labels, layers: Layers, dim: int) -> Layers:
    """End what varies along `dim` alone; what varies jointly is cut along the rest: whole heads."""
    left = []
    for layer in layers:
        if varies(layer, dim) and len(varying(layer)) > 1:
            labels.unite(layer, layer.narrow(dim, 0, 1))
            left.append(layer.narrow(dim, 0, 1))
        elif not varies(layer, dim):
            left.append(layer)
    return tuple(a for a in left if a.numel() > 1)


@rule("aten.einsum.default")
def einsum(labels: Labels, node: Node) -> Layers | list[Layers]:
    """Lay two tensors out over all letters, let them meet, sum over the letters that end."""
    equation, tensors = node.args[:2]
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    plain = arrow and "." not in equation and all(len(set(t)) == len(t) for t in (*terms, output))
    if not plain or len(terms) != 2:
        return no_rule(labels, node)
    letters = output + "".join(sorted(set("".join(terms)) - set(output)))
    sizes = {
        letter: n
        for term, ref in zip(terms, tensors, strict=True)
        for letter, n in zip(term, labels.shape(ref), strict=True)
        if n > 1
    }
    operands = [
        _lay_out(labels, ref, term, letters) for term, ref in zip(terms, tensors, strict=True)
    ]
    along: dict[str, Tensor | int] = {letter: sizes.get(letter, 1) for letter in letters}
    for term, ref in zip(terms, tensors, strict=True):
        for d, letter in enumerate(term):
            found = labels.labels_along(ref, d)
            if isinstance(found, Tensor):
                along[letter] = found
    if len(letters) > len(output):  # else nothing is summed: an outer product, no contraction
        labels.multiply(node, 1, list(along.values()))
    met = labels.meet(tuple(sizes.get(letter, 1) for letter in letters), operands, node)
    for dim in reversed(range(len(output), len(letters))):
        met = tuple(a.squeeze(dim) for a in _sum_over(labels, met, dim))
    return met


def _lay_out(labels: Labels, ref: Ref, term: str, letters: str) -> Operand:
    """Permute a tensor's layers to the order of `letters`, with size 1 for those it lacks."""
    order = sorted(range(len(term)), key=lambda d: letters.index(term[d]))
    places = [letters.index(term[d]) for d in order]

    def lay(sizes: Shape) -> list[int]:
        wide = [1] * len(letters)
        for place, d in zip(places, order, strict=True):
            wide[place] = sizes[d]
        return wide

    layers = tuple(a.permute(order).reshape(lay(tuple(a.shape))) for a in labels.of(ref))
    return Operand(layers, tuple(lay(labels.shape(ref))))


def _along(labels: Labels, ref: Ref, dim: int) -> Tensor | int:
    return labels.labels_along(ref, dim) if len(labels.shape(ref)) >= -dim else 1


def _unsqueeze(layers: Layers, shape: Shape, at: int, ndim: int) -> Operand:
    def lay(layer: Layer) -> Layer:
        return pad(layer.unsqueeze(at), ndim)

    wide = (*shape[:at], 1, *shape[at:])
    return Operand(tuple(lay(a) for a in layers), (1,) * (ndim - len(wide)) + wide)


def _vectors(labels: Labels, node: Node, tensors: list[Ref]) -> Layers:
    for ref in tensors:
        for layer in labels.of(ref):
            labels.freeze(layer, "is multiplied with a vector", node)
    return ()


@rule("aten.embedding.default")
def embedding(labels: Labels, node: Node) -> Layers:
    """Look rows up: the rows must stay, the columns go on."""
    weight = node.args[0]
    ndim = len(labels.shapes[node.outputs[0]])
    rows, columns = labels.labels_along(weight, 0), labels.labels_along(weight, 1)
    if isinstance(rows, Tensor):
        labels.freeze(rows, "is looked up by index", node)
    return (spread(columns, ndim - 1, ndim),) if isinstance(columns, Tensor) else ()
