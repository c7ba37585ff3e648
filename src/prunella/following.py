"""Find the literals of a captured graph that stand for the batch, the precision or the device.

A capture writes down what the example inputs were like: `view(2, 197, 768)`, `device="cpu"`. So the
model is captured once more under other circumstances: more samples, in float64. What
is written there differently follows the circumstances; everything else is the model's own. Devices
are not varied: whatever is made where the parameters are follows them.
"""

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunella.errors import TraceError
from prunella.examples import Arguments
from prunella.graph import Graph, Node, Path
from prunella.labels import Shape
from prunella.tracing import trace

log = logging.getLogger("prunella")

_TIMES = 3  # a multiple, for models that view the batch as clips of so many frames


def enlarged(inputs: Arguments) -> Arguments | None:
    """Return inputs of more samples; None where it cannot be told what the samples are."""
    found = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim]
    if len({len(tensor) for tensor in found}) != 1:
        return None
    return _each(inputs, lambda t: torch.cat([t] * _TIMES) if t.ndim else t)


@dataclass(frozen=True, eq=False)
class Second:
    """A second capture, by the names of the first.

    Attributes:
        nodes: The same calls, whose literals may be others.
        shapes: The same values' shapes.
    """

    nodes: Mapping[str, Node]
    shapes: Mapping[str, Shape]


def second_capture(
    model: nn.Module, first: Graph, inputs: Arguments, *, training: bool
) -> Second | None:
    """Capture a model once more, under other circumstances.

    Args:
        model: The model.
        first: What was captured on the inputs.
        inputs: The arguments of the first capture.
        training: Whether that was in training mode.

    Returns:
        The second capture; None where the model takes another course whatever is changed.
    """
    hollow = _hollow(model)
    for given in filter(None, (enlarged(inputs), inputs)):
        args, kwargs = _each(given, lambda tensor: tensor.to(_raised(tensor)))
        try:
            found = _paired(first, trace(hollow, args, kwargs, training=training))
        except TraceError as error:
            log.debug("`%s` under other circumstances: %s", type(model).__name__, error)
            continue
        if found is not None:
            return found
    return None


def _raised(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.is_floating_point() else tensor.dtype


def _each(inputs: Arguments, change: Callable[[Tensor], Tensor]) -> Arguments:
    made: Arguments = pytree.tree_map_only(Tensor, change, inputs)
    return made


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
    return copy.deepcopy(model, memo)


def _paired(first: Graph, second: Graph) -> Second | None:
    """Pair two captures call by call; None where they differ in more than literals.

    `contiguous` leaves no trace where a tensor is contiguous already, as with a batch of one.
    """
    ours, theirs = (
        [n for n in graph.nodes if n.op != "aten.contiguous.default"] for graph in (first, second)
    )
    if [n.op for n in ours] != [n.op for n in theirs] or first.inputs != second.inputs:
        return None
    shapes = {name: second.values[name].shape for name in first.inputs}
    for our, their in zip(ours, theirs, strict=True):
        pairs = zip(our.outputs, their.outputs, strict=True)
        shapes |= {name: second.values[other].shape for name, other in pairs}
    return Second({our.name: their for our, their in zip(ours, theirs, strict=True)}, shapes)


def literal(node: Node, path: Path) -> Any:
    """Return one literal among the arguments of a node."""
    found: Any = node.args if isinstance(path[0], int) else node.kwargs
    for key in path:
        found = found[key]
    return found
