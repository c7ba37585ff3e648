"""Linear layers, matrix products and look-ups."""

from math import prod

from torch import Tensor

from prunella.graph import Node, Ref
from prunella.labels import Labels, Layer, Layers, Operand, Shape, pad, spread, varies, varying
from prunella.rules._registry import argument, rule


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
    joint = [layer for layer in met if varies(layer, ndim - 1) and len(varying(layer)) > 1]
    for layer in joint:  # whole heads: what varies over (head, inner) is cut along head
        labels.unite(layer, layer.narrow(ndim - 1, 0, 1))
    ended = [x.narrow(ndim - 1, 0, 1) if any(x is j for j in joint) else x for x in met]
    return tuple(x.squeeze(ndim - 1) for x in ended if not varies(x, ndim - 1) and x.numel() > 1)


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
