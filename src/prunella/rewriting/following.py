"""Capture a model again under other circumstances, to tell what in a graph follows the inputs.

A capture writes down what the example inputs were like: `view(2, 197, 768)`, `dtype=float32`. A
second one, with more and longer samples in float64, shows which of these numbers follow the inputs
and which are the model's own. Devices are not varied: what is made where the parameters are follows
them.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunella.errors import TraceError
from prunella.graph import Graph, Node, Path
from prunella.labels import Shape
from prunella.model.examples import Arguments
from prunella.model.modes import copied
from prunella.tracing import trace

log = logging.getLogger("prunella")

_TIMES = 3  # more samples by this factor: a multiple, as models may view a batch as clips of frames
_LONGER = 2  # longer samples by this one: a number that grows threefold grows with the batch alone


@dataclass(frozen=True, eq=False)
class Second:
    """A second capture, by the names of the first.

    Attributes:
        nodes: The same calls, whose literals may be others.
        shapes: The same values' shapes.
        longer: Whether not only the batch is larger.
    """

    nodes: Mapping[str, Node]
    shapes: Mapping[str, Shape]
    longer: bool


def second_captures(
    model: nn.Module, first: Graph, inputs: Arguments, *, training: bool
) -> Iterator[Second]:
    """Yield second captures, the one under the most other circumstances first.

    None is yielded where the model takes another course whatever is changed.

    Args:
        model: The model.
        first: What was captured on the inputs.
        inputs: The arguments of the first capture.
        training: Whether that was in training mode.
    """
    hollow = _hollow(model)
    more = enlarged(inputs)
    for given in (more and _lengthened(more), more, inputs):
        if given is None:
            continue
        args, kwargs = _each(given, lambda tensor: tensor.to(_raised(tensor)))
        try:
            second = trace(hollow, args, kwargs, training=training)
        except TraceError as error:
            log.debug("`%s` under other circumstances: %s", type(model).__name__, error)
            continue
        found = _paired(first, second, longer=given is not more and given is not inputs)
        if found is not None:
            yield found


def enlarged(inputs: Arguments) -> Arguments | None:
    """Return inputs of more samples; None where it cannot be told what the samples are."""
    found = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim]
    if len({len(tensor) for tensor in found}) != 1:
        return None
    return _each(inputs, lambda tensor: torch.cat([tensor] * _TIMES) if tensor.ndim else tensor)


def _lengthened(inputs: Arguments) -> Arguments:
    """Return inputs of longer samples: larger images, longer sequences."""

    def longer(tensor: Tensor) -> Tensor:
        for dim in _lengths(tensor):
            tensor = torch.cat([tensor] * _LONGER, dim)
        return tensor

    return _each(inputs, longer)


def _lengths(tensor: Tensor) -> range:
    """Guess which dimensions are no channels; where the guess is wrong, the model will not run."""
    if not tensor.is_floating_point():
        return range(1, tensor.ndim)
    return range(2, tensor.ndim) if tensor.ndim > 3 else range(1, tensor.ndim - 1)


def _each(inputs: Arguments, change: Callable[[Tensor], Tensor]) -> Arguments:
    made: Arguments = pytree.tree_map_only(Tensor, change, inputs)
    return made


def _raised(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.is_floating_point() else tensor.dtype


def _hollow(model: nn.Module) -> nn.Module:
    """Copy a model in float64, its tensors without memory."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        held = (vars(module), module._parameters, module._buffers)
        for tensor in (item for holder in held for item in holder.values()):
            if isinstance(tensor, Tensor):
                empty = torch.empty_like(tensor, dtype=_raised(tensor), requires_grad=False)
                empty.untyped_storage().resize_(0)
                if isinstance(tensor, nn.Parameter):
                    empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
                memo[id(tensor)] = empty
    return copied(model, memo)


def _paired(first: Graph, second: Graph, *, longer: bool) -> Second | None:
    """Pair two captures call by call; None where they differ in more than literals.

    Which tensors a call gets is not compared: where a call returns its argument as it is (`to` the
    precision that a tensor has), a capture shows later uses of either as uses of one.
    """
    ours, theirs = _calls(first), _calls(second)
    if first.inputs != second.inputs or list(map(_form, ours)) != list(map(_form, theirs)):
        return None
    shapes = {name: second.values[name].shape for name in first.inputs}
    for our, their in zip(ours, theirs, strict=True):
        pairs = zip(our.outputs, their.outputs, strict=True)
        shapes |= {name: second.values[other].shape for name, other in pairs}
    nodes = {our.name: their for our, their in zip(ours, theirs, strict=True)}
    return Second(nodes, shapes, longer)


def _calls(graph: Graph) -> list[Node]:
    """List the calls but for `contiguous`: it leaves no trace where a tensor is that already."""
    return [node for node in graph.nodes if node.op != "aten.contiguous.default"]


def _form(node: Node) -> Any:
    """Return what must be the same: everything but the literals' values and tensors' names."""
    leaves, structure = pytree.tree_flatten((node.args, dict(node.kwargs)))
    return node.op, len(node.outputs), structure, [type(leaf) for leaf in leaves]


def literal(node: Node, path: Path) -> Any:
    """Return one literal among the arguments of a node."""
    found: Any = node.args if isinstance(path[0], int) else node.kwargs
    for key in path:
        found = found[key]
    return found
