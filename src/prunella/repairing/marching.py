"""Run a captured network on several batches side by side, node by node.

What is computed from activations at one node can so change the weights of that node before any
batch passes it, in a single pass over the data.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunella.calibration import Calibration
from prunella.errors import TraceError
from prunella.graph import Graph, Node
from prunella.model.examples import Arguments
from prunella.model.structure import free_bytes
from prunella.replaying import Step, Values, bind, last_uses
from prunella.tracing import trace

log = logging.getLogger("prunella")


@dataclass(frozen=True, eq=False)
class Course:
    """What is run for batches of one shape: the nodes, and what each is the last to need."""

    graph: Graph
    nodes: tuple[Node, ...]
    gone: tuple[tuple[str, ...], ...]

    @cached_property
    def peak(self) -> int:
        """Count the bytes of activations at the worst moment."""
        held: dict[str, int] = {}
        most = 0
        for node, names in zip(self.nodes, self.gone, strict=True):
            held |= {name: self._bytes(name) for name in node.outputs}
            most = max(most, sum(held.values()))
            for name in names:
                held.pop(name, None)
        return most

    def _bytes(self, name: str) -> int:
        value = self.graph.values[name]
        return prod(value.shape) * value.dtype.itemsize


Way = tuple[Course, Arguments]
"""A batch, and what is run for it."""


def courses(model: nn.Module, data: Calibration) -> list[Way]:
    """Capture the model on every distinct shape of its batches.

    Batches for which it computes something else than for most (another course of its code) are
    left out.

    Raises:
        TraceError: The model can only be captured as one recorded run, which does not hold for
            other data.
    """
    known: dict[str, Course] = {}
    found: list[Way] = []
    for args, kwargs in data.batches:
        key = shape_of(args, kwargs)
        if key not in known:
            known[key] = _course(trace(model, args, kwargs))
        found.append((known[key], (args, kwargs)))
    kinds = Counter(_kind(course) for course, _ in found)
    usual = kinds.most_common(1)[0][0]
    alike = [(course, batch) for course, batch in found if _kind(course) == usual]
    if len(alike) < len(found):
        log.warning(
            "%d of %d calibration batches are left out: for their shapes the model computes "
            "something else than for the others",
            len(found) - len(alike),
            len(found),
        )
    return alike


def within(pairs: Sequence[Way], device: torch.device, models: int) -> list[Way]:
    """Leave batches out, evenly, until all that run side by side fit into half the free memory.

    Args:
        pairs: What would run.
        device: Where.
        models: In how many models at once.
    """
    room = free_bytes(device) // 2
    need = models * sum(course.peak for course, _ in pairs)
    if need <= room:
        return list(pairs)
    kept = max(len(pairs) * room // need, 1)
    log.warning(
        "%d of %d calibration batches are used: the activations of all need %.1f GB at once, %.1f "
        "are there for them. Smaller batches waste less",
        kept,
        len(pairs),
        need / 2**30,
        room / 2**30,
    )
    return [pairs[i * len(pairs) // kept] for i in range(kept)]


def shape_of(args: tuple[object, ...], kwargs: Mapping[str, object]) -> str:
    """Describe all of a call but the elements of its tensors."""
    leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
    parts = [
        f"{tuple(leaf.shape)} {leaf.dtype}" if isinstance(leaf, Tensor) else repr(leaf)
        for leaf in leaves
    ]
    return f"{spec} {parts}"


def _course(graph: Graph) -> Course:
    if graph.recorded:
        raise TraceError(
            "this model can only be captured as one recorded run, whose course depends on the "
            "data, so calibration batches cannot be run through it. Prune it without "
            "`calibration`, or give the part that is not post-processing"
        )
    nodes = tuple(node for node in graph.nodes if not node.training)
    gone = last_uses(nodes, graph.outputs)
    return Course(graph, nodes, tuple(tuple(names) for names in gone))


def _kind(course: Course) -> tuple[tuple[str, str], ...]:
    return tuple((node.name, node.op) for node in course.nodes)


@dataclass(eq=False)
class Lane:
    """One batch on its way through the network, with the tensors alive at this point."""

    course: Course
    values: dict[str, Tensor]

    def run(self, index: int, step: Step) -> list[Tensor]:
        """Compute the node of that index, without yet letting go of anything."""
        return step(self.course.nodes[index], self.values)

    def take(self, index: int, made: Sequence[Tensor]) -> None:
        """Go on with what the node made; let go of what was needed for the last time."""
        self.values.update(zip(self.course.nodes[index].outputs, made, strict=True))
        for name in self.course.gone[index]:
            self.values.pop(name, None)


def lane(course: Course, batch: Arguments, tensors: Values) -> Lane:
    """Put a batch at the start, with these parameters and buffers (by the user's names)."""
    graph = course.graph
    values = {**graph.constants, **_own(bind(graph, *batch))}
    for name, value in graph.values.items():
        if value.kind in ("parameter", "buffer"):
            values[name] = tensors[value.source]
    return Lane(course, values)


def _own(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Operators that write in place would write to the user's data.
    return {name: tensor.clone() for name, tensor in inputs.items()}
