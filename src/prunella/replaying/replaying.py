"""Run a captured graph: as it is, or as if some of its channels were not there.

The second is the masked model where statistics are taken over channels (layer norm, a softmax or a
mean over channels): there a zero is not the same as nothing. So the graph runs in its own shapes,
with zeros for what is removed, but for the nodes that take such statistics: these get just what is
kept, and what they return is put back among zeros.
"""

from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from prunella.coupling.resizing import Resized
from prunella.errors import CertificateError
from prunella.graph import Graph, Node
from prunella.labels import Shape
from prunella.replaying.course import Course
from prunella.replaying.nodes import Step, Values, names_of, run_node
from prunella.tracing.operators import operator_of


def replay(graph: Graph, tensors: Values, inputs: Values, step: Step) -> list[Tensor]:
    """Compute a graph's outputs, of evaluation mode, in their order.

    Every tensor lives until its last use. Operators that write in place do so.

    Args:
        graph: A captured network; one that is a mere record of a run (`recorded`) will not do.
        tensors: Its parameters and buffers, by the user's names.
        inputs: Its inputs, by value name.
        step: Runs one node: `run_node` or `keeping(...)`.
    """
    course = Course(graph)
    at = course.lane(inputs, tensors)
    for position in range(course.end):
        at.take(position, at.run(position, step))
    return [at.values[name] for name in course.outputs]


def keeping(resized: Resized) -> Step:
    """Return the step that computes as if only the kept channels were there.

    Where a node is told a number that depends on how many channels there are (a sum is divided by
    their count), it is told the new one.
    """
    groups = resized.flow.groups
    marked = set(groups.marked)
    small = {node.name: node for node in resized.nodes}

    def step(node: Node, values: Values) -> list[Tensor]:
        if node.name in marked and any(resized.kept(name) is not None for name in names_of(node)):
            return _run_kept(node, small[node.name], resized, values)
        made = run_node(_with_numbers(node, small[node.name]), values)
        for name, tensor in zip(node.outputs, made, strict=True):
            kept = resized.kept(name)
            if kept is not None and _is_own(node, tensor, values):
                tensor.masked_fill_(~kept.to(tensor.device), 0)
        return made

    return step


def _with_numbers(node: Node, small: Node) -> Node:
    """Return the node with the new values of its numbers, but the old sizes."""
    schema = operator_of(node.op)._schema  # type: ignore[attr-defined]
    if node.op.startswith("aten.arange."):  # whose sizes are numbers
        return node
    kinds = {argument.name: str(argument.type) for argument in schema.arguments}
    places = {i: argument.name for i, argument in enumerate(schema.arguments)}

    def new(place: int | str, old: Any, now: Any) -> Any:
        kind = kinds.get(places.get(place, "") if isinstance(place, int) else place, "")
        return now if "number" in kind or "Tensor" in kind or "float" in kind else old

    args = tuple(new(i, a, b) for i, (a, b) in enumerate(zip(node.args, small.args, strict=True)))
    kwargs = {key: new(key, node.kwargs[key], small.kwargs[key]) for key in node.kwargs}
    return replace(node, args=args, kwargs=kwargs)


def _is_own(node: Node, made: Tensor, values: Values) -> bool:
    """Say whether a tensor may be written to: it is new, or was just written to.

    A view needs no zeros of its own; what it shows has them. Nor may a parameter get any.
    """
    if operator_of(node.op)._schema.is_mutable:  # type: ignore[attr-defined]
        return True
    memory = made.untyped_storage().data_ptr()
    return all(values[name].untyped_storage().data_ptr() != memory for name in names_of(node))


def _run_kept(node: Node, small: Node, resized: Resized, values: Values) -> list[Tensor]:
    """Run a node on what is kept, and put what it makes where it was."""
    try:
        found = {
            name: take_kept(values[name], resized.kept(name), resized.shapes[name])
            for name in names_of(node)
        }
        made = run_node(small, found)
        return [
            put_back(tensor, resized.kept(name), resized.flow.groups.graph.values[name].shape)
            for name, tensor in zip(node.outputs, made, strict=True)
        ]
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise CertificateError(
            f"{node.where()} takes statistics over channels and cannot be computed over the kept "
            f"ones ({error}): exclude the modules around it, and report this network"
        ) from error


def take_kept(tensor: Tensor, kept: Tensor | None, shape: Shape) -> Tensor:
    """Return the elements of a tensor that a mask keeps, as a tensor of the given shape."""
    if shape == tuple(tensor.shape):
        return tensor
    return tensor.reshape(-1)[_positions(kept, tuple(tensor.shape), shape).to(tensor.device)]


def put_back(tensor: Tensor, kept: Tensor | None, shape: Shape) -> Tensor:
    """Return a tensor of the given shape with these elements where a mask keeps some, else zero."""
    if shape == tuple(tensor.shape):
        return tensor
    positions = _positions(kept, shape, tuple(tensor.shape)).to(tensor.device)
    wide = tensor.new_zeros(shape)
    wide.view(-1)[positions.reshape(-1)] = tensor.reshape(-1)
    return wide


def _positions(kept: Tensor | None, before: Shape, after: Shape) -> Tensor:
    """Return where the elements of a smaller tensor were in the larger one, counted flat.

    Every line along a dimension that gets shorter keeps equally many, or nothing at all: then it
    goes with another dimension.
    """
    mask = torch.ones((1,) * len(before), dtype=torch.bool) if kept is None else kept
    numbers = torch.arange(prod(before)).view(before)
    for dim in reversed(range(len(before))):
        if after[dim] == before[dim]:
            continue
        if mask.shape[dim] == 1:  # a constant fill, which is the same wherever it is cut
            numbers = numbers.narrow(dim, 0, after[dim])
            continue
        order = (~mask).to(torch.int8).argsort(dim=dim, stable=True).narrow(dim, 0, after[dim])
        mask = mask.gather(dim, order)
        wide = [after[d] if d == dim else n for d, n in enumerate(numbers.shape)]
        numbers = numbers.gather(dim, order.expand(wide))
    if tuple(numbers.shape) != after or not bool(mask.all()):
        raise ValueError(f"what is kept of a tensor of shape {before} is no block of shape {after}")
    return numbers
