"""What a network does along each axis of a parameter: read, make, scale or shift channels."""

from typing import Literal

from prunella.graph import Graph, Node, Ref, refs
from prunella.plan import Axis
from prunella.rules._registry import argument as argument_of
from prunella.tracing.operators import operator_of

Role = Literal["reads", "makes", "scales", "shifts"]
"""Of a weight's axis: whether the channels along it are summed over ("reads"), are what comes out
("makes"), or are multiplied with one number each ("scales") or added one ("shifts")."""

_RANK: tuple[Role, ...] = ("reads", "makes", "scales", "shifts")

_PERMUTES = frozenset("t transpose permute mT numpy_T".split())
_KEEPS = frozenset("contiguous detach to _to_copy clone alias expand view reshape squeeze "
                   "unsqueeze flatten unflatten".split())  # fmt: skip
_PRODUCTS = frozenset("matmul mm bmm mv addmm baddbmm addmv _grouped_mm "
                      "grouped_mm_fallback".split())  # fmt: skip
_RECURRENT = frozenset(f"{kind}{cell}" for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu")
                       for cell in ("", "_cell"))  # fmt: skip
_SHIFTS = frozenset("bias b_ih b_hh".split())
_ADDS = frozenset("add add_ sub sub_ rsub".split())

Dims = tuple[int, ...]


def roles_of(graph: Graph) -> dict[Axis, Role]:
    """Tell the role of every axis of every parameter that the graph uses.

    An axis with several roles (tied weights) has the first of reads, makes, scales, shifts. What an
    unknown operator does to a parameter counts as scaling.
    """
    found: dict[Axis, Role] = {}
    known = {
        name: (value.source, tuple(range(len(value.shape))))
        for name, value in graph.values.items()
        if value.kind == "parameter"
    }
    for node in graph.nodes:
        if _follow(graph, node, known):
            continue
        for place, ref in _places(node):
            if ref.name not in known:
                continue
            tensor, dims = known[ref.name]
            for here, dim in enumerate(dims):
                role = _role(graph, node, place, ref, here)
                axis = Axis(tensor, dim)
                if dim >= 0 and _RANK.index(role) <= _RANK.index(found.get(axis, _RANK[-1])):
                    found[axis] = role
    return found


def _name(node: Node) -> str:
    return node.op.split(".")[1]


def _follow(graph: Graph, node: Node, known: dict[str, tuple[str, Dims]]) -> bool:
    """Note where a moved parameter's dimensions are now; -1 is a dimension it did not have."""
    first = node.args[0] if node.args else None
    if not isinstance(first, Ref) or first.name not in known or len(node.outputs) != 1:
        return False
    tensor, dims = known[first.name]
    before, after = graph.values[first.name].shape, graph.values[node.outputs[0]].shape
    if _name(node) in _PERMUTES:
        moved = _permuted(node, dims)
    elif _name(node) in _KEEPS and [n for n in before if n > 1] == [n for n in after if n > 1]:
        wide = iter([dim for dim, n in zip(dims, before, strict=True) if n > 1])
        moved = tuple(next(wide) if n > 1 else -1 for n in after)
    else:
        return False
    known[node.outputs[0]] = (tensor, moved)
    return True


def _permuted(node: Node, dims: Dims) -> Dims:
    order = list(range(len(dims)))
    if _name(node) == "permute":
        order = [d % len(dims) for d in node.args[1]]
    elif _name(node) == "transpose":
        a, b = (d % len(dims) for d in node.args[1:3])
        order[a], order[b] = order[b], order[a]
    elif _name(node) == "mT":
        order[-2:] = order[:-3:-1]
    else:
        order.reverse()
    return tuple(dims[d] for d in order)


def _places(node: Node) -> list[tuple[str, Ref]]:
    """List the tensors a node takes, with the names of its arguments."""
    try:
        schema = operator_of(node.op)._schema  # type: ignore[attr-defined]
        names = [argument.name for argument in schema.arguments]
    except AttributeError:  # Python's own operators, and wrappers such as vmap, have no schema
        names = [""] * len(node.args)
    given = [*zip(names, node.args, strict=False), *node.kwargs.items()]
    return [(name, ref) for name, value in given for ref in refs(value)]


def _role(graph: Graph, node: Node, argument: str, ref: Ref, dim: int) -> Role:
    """Say what a node does along dimension `dim` of the tensor that is its argument `argument`."""
    name, ndim = _name(node), len(graph.values[ref.name].shape)
    added = argument == "self" and name in ("addmm", "baddbmm", "addmv")
    if argument in _SHIFTS or added or name in _ADDS or (name in _RECURRENT and ndim == 1):
        return "shifts"
    reads: set[int] | None = None
    if argument == "weight" and name.startswith("conv"):
        # Along a kernel channels are cut only where it takes all of them at once.
        reads = set(range(ndim)) - {1 if _is_transposed(node) else 0}
    elif argument == "weight" and name in ("linear", "bilinear"):
        reads = set(range(min(ndim - 1, 1), ndim))
    elif name in _RECURRENT and argument not in ("input", "data", "hx"):
        reads = {1}
    elif name in _PRODUCTS:
        left = argument in ("self", "mat1", "batch1", "input")
        reads = {ndim - 1 if left or ndim == 1 else ndim - 2}
    elif name == "einsum":
        reads = _ending(node, ref)
    elif name == "embedding":
        reads = set()
    if reads is None:
        return "scales"
    return "reads" if dim in reads else "makes"


def _is_transposed(node: Node) -> bool:
    return "transpose" in node.op or bool(argument_of(node, 6, "transposed", False))


def _ending(node: Node, ref: Ref) -> set[int]:
    """Return the dimensions of a tensor in an einsum whose letters are not in the result."""
    equation, _, output = node.args[0].replace(" ", "").partition("->")
    letters = equation.split(",")[node.args[1].index(ref)].replace("...", "")
    return {i for i, letter in enumerate(letters) if letter not in output}
