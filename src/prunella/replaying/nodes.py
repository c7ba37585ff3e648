"""The parts of running a captured graph: its inputs by name, and one node after the other."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from prunella.graph import Graph, Node, Ref, refs
from prunella.tracing.operators import operator_of

Values = Mapping[str, Tensor]
Step = Callable[[Node, Values], list[Tensor]]
"""Run one node on the tensors there are; return its outputs."""


def bind(graph: Graph, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Name the tensors among a user's arguments as the graph names its inputs."""
    return {known.name: given for known, given in _pairs(graph, args, kwargs) if _is_ref(known)}


def fits(graph: Graph, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Say whether the graph was captured on such arguments: the same but for tensors' elements."""
    try:
        pairs = _pairs(graph, args, kwargs)
    except ValueError:
        return False
    return all(
        isinstance(given, Tensor) and tuple(given.shape) == graph.values[known.name].shape
        if _is_ref(known)
        else not isinstance(given, Tensor) and bool(known == given)
        for known, given in pairs
    )


def _pairs(graph: Graph, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """Pair what the graph was captured on with what is given, part by part."""
    known = pytree.tree_leaves(graph.takes)
    order = [key for key in graph.takes[1] if key in kwargs]
    given = (tuple(args), {key: kwargs[key] for key in [*order, *(kwargs.keys() - set(order))]})
    return list(zip(known, pytree.tree_leaves(given), strict=True))


def _is_ref(item: Any) -> bool:
    return isinstance(item, Ref)


def kind_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Describe all of a call but the elements of its tensors: what one capture is good for."""
    leaves, structure = pytree.tree_flatten((tuple(args), dict(kwargs)))
    shown = [
        f"{tuple(leaf.shape)} {leaf.dtype}" if isinstance(leaf, Tensor) else repr(leaf)
        for leaf in leaves
    ]
    return f"{structure} {shown}"


def names_of(node: Node) -> list[str]:
    """List the tensors that a node reads, one as often as it does."""
    return [ref.name for ref in refs((node.args, node.kwargs))]


def run_node(node: Node, values: Values) -> list[Tensor]:
    """Run one node as it is."""
    args, kwargs = _fill((node.args, dict(node.kwargs)), values)
    made = operator_of(node.op)(*args, **kwargs)
    found = made if isinstance(made, tuple | list) else [made]
    return [item for item in found if isinstance(item, Tensor)]


def _fill(argument: Any, values: Values) -> Any:
    if isinstance(argument, Ref):
        return values[argument.name]
    if isinstance(argument, tuple):
        return tuple(_fill(item, values) for item in argument)
    if isinstance(argument, dict):
        return {key: _fill(item, values) for key, item in argument.items()}
    return argument


def written(node: Node) -> list[str]:
    """List the tensors that a node writes to."""
    schema = operator_of(node.op)._schema  # type: ignore[attr-defined]
    if not schema.is_mutable:
        return []
    given = {
        **dict(enumerate(node.args)),
        **{i: node.kwargs[a.name] for i, a in enumerate(schema.arguments) if a.name in node.kwargs},
    }
    found = [
        given.get(i)
        for i, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return [ref.name for ref in refs(tuple(found))]
