"""Distances between all vectors of two sets, and products that fix a dimension's size."""

from prunella.graph import Node
from prunella.labels import Labels, Layers, Operand, dims_of
from prunella.rules._registry import argument, rule


@rule("aten.cdist.default")
def distance(labels: Labels, node: Node) -> Layers:
    """Compare vectors `[..., P, M]` and `[..., R, M]` element by element; sum over M.

    What is left of the sum after cutting is over the kept channels.
    """
    a, b = node.args[:2]
    shape = labels.shapes[node.outputs[0]]
    ndim = len(shape)
    wide = (*shape, labels.shape(a)[-1])
    left = _unsqueezed(labels.operand(a), -2)
    right = _unsqueezed(labels.operand(b), -3)
    met = [labels.tight(layer) for layer in labels.meet(wide, [left, right], node)]
    alone = [layer for layer in met if dims_of([layer]) == {ndim}]
    if alone:
        labels.mark(node)
    rest = [layer for layer in met if dims_of([layer]) != {ndim}]
    return tuple(
        layer.squeeze(ndim)
        for layer in labels.pass_through(tuple(rest), [ndim], "is summed over", node)
    )


def _unsqueezed(operand: Operand, dim: int) -> Operand:
    shape = list(operand.shape)
    shape.insert(len(shape) + 1 + dim, 1)
    return Operand(tuple(a.unsqueeze(dim) for a in operand.layers), tuple(shape))


@rule("aten.linalg_cross.default", "aten.cross.default")
def cross(labels: Labels, node: Node) -> Layers:
    """Multiply vectors of three."""
    shape = labels.shapes[node.outputs[0]]
    dim = argument(node, 2, "dim", -1)
    dim = (shape.index(3) if dim is None else dim) % len(shape)
    sides = []
    for ref in node.args[:2]:
        operand = labels.operand(ref)
        at = dim - len(shape) + len(operand.shape)
        layers = labels.pass_through(operand.layers, [at], "is a vector of three", node)
        sides.append(Operand(layers, operand.shape))
    return labels.meet(shape, sides, node)
