"""Numbers that multiply: which ones a graph has, and through which operators a factor passes.

Attention divides its scores by the root of head_dim. Code that reads head_dim off a tensor divides
by another number once heads are shorter. To undo that, a factor is carried back to the parameters
that the scores are made of, through operators that let it pass.
"""

from collections.abc import Iterator, Mapping

from prunella.graph import Graph, Node, Ref, refs
from prunella.labels import Shape
from prunella.rules._registry import argument

_ATTENTION = "scaled_dot_product_attention"
_PRODUCTS = frozenset("matmul bmm baddbmm einsum".split())
_TIMES, _OVER = frozenset(("mul", "multiply")), frozenset(("div", "divide", "true_divide"))
_PASS = frozenset(
    """
    view view_as reshape reshape_as _unsafe_view flatten unflatten squeeze unsqueeze expand
    expand_as broadcast_to repeat tile permute transpose swapaxes t mT detach_ lift_fresh_copy
    movedim slice select unbind chunk split split_with_sizes narrow clone contiguous detach alias
    to _to_copy dropout roll neg flip repeat_interleave numpy_T index
    """.split()
)
_JOIN = frozenset(("cat", "concat", "stack", "add", "sub"))
_AFFINE = {  # where weight and bias stand: both scaled, so is the result
    "linear": (1, 2), "conv1d": (1, 2), "conv2d": (1, 2), "conv3d": (1, 2),
    "addmm": (0, 2), "layer_norm": (2, 3), "rms_norm": (2,), "batch_norm": (1, 2),
}  # fmt: skip


def kind(node: Node) -> str:
    """Return an operator's name without library and overload: "aten.add_.Tensor" is "add"."""
    name = node.op.split(".")[1]
    return name.removesuffix("_") if not name.startswith("_") else name


def scale_of(node: Node, shapes: Mapping[str, Shape]) -> float:
    """Return what attention multiplies its scores by; 1.0 for other operators."""
    if kind(node) != _ATTENTION:
        return 1.0
    given = argument(node, 7, "scale")
    return float(shapes[node.args[0].name][-1] ** -0.5 if given is None else given)


def written_down(
    node: Node, before: Mapping[str, Shape], after: Mapping[str, Shape]
) -> dict[str, float]:
    """Return the arguments that keep a node at the scale it has, where it is read off a shape."""
    scale = scale_of(node, before)
    return {} if scale == scale_of(node, after) else {"scale": scale}


def multiplier(node: Node) -> float:
    """Return by what a node multiplies its first argument, 1.0 where by no plain number.

    A whole number is a count, as in a mean: it follows what is counted.
    """
    if len(node.args) > 1 and isinstance(node.args[1], float):
        number = float(node.args[1])
        if kind(node) in _TIMES:
            return number
        if kind(node) in _OVER and number:
            return 1 / number
    return 1.0


def scores(graph: Graph) -> Iterator[tuple[Node, tuple[Ref, Ref]]]:
    """Yield the products of two computed tensors, with both."""
    for node in graph.nodes:
        tensors = refs(node.args)
        name = kind(node)
        if name == "baddbmm":
            tensors = tensors[1:]
        if name == _ATTENTION or (name in _PRODUCTS and len(tensors) == 2):
            yield node, (tensors[0], tensors[1])


def passes(node: Node) -> bool:
    """Say whether a factor passes through a node from its first argument, and nothing else."""
    return kind(node) in _PASS or multiplier(node) != 1.0


def through(node: Node) -> list[list[Ref]] | None:
    """Say which arguments of a node have to be scaled for its result to be: one of these lists.

    None where no scaling of arguments scales the result.
    """
    name, tensors = kind(node), refs(node.args)
    if passes(node) or name in _OVER:
        return [tensors[:1]]
    if name in _JOIN:
        return [tensors]
    if name in _TIMES:
        return [[ref] for ref in tensors]
    if name in _AFFINE:
        found = [a for i in _AFFINE[name] for a in node.args[i : i + 1] if isinstance(a, Ref)]
        return [found] if found else None
    return None
