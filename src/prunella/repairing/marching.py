"""Run a captured network on several batches side by side, node by node.

What is computed from activations at one node can so change the weights of that node before any
batch passes it, in a single pass over the data.
"""

import logging
from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn

from prunella.calibration import Calibration
from prunella.errors import TraceError
from prunella.graph import Graph
from prunella.model.examples import Arguments
from prunella.model.structure import free_bytes
from prunella.plan import check_kind
from prunella.replaying import Course, Lane, Values, bind, kind_of
from prunella.tracing import trace
from prunella.tracing.capturing import wrong_input

log = logging.getLogger("prunella")


Way = tuple[Course, Arguments]
"""A batch, and what is run for it."""


def courses(model: nn.Module, data: Calibration) -> list[Way]:
    """Capture the model on every distinct shape of its batches.

    Batches for which it computes something else than for most (another course of its code) are
    left out.

    Raises:
        TraceError: The model does not run on a batch; or it can only be captured as one recorded
            run, which does not hold for other data.
    """
    check_kind(data, Calibration)
    known: dict[str, Course] = {}
    found: list[Way] = []
    for number, (args, kwargs) in enumerate(data.batches):
        key = kind_of(args, kwargs)
        if key not in known:
            # The model itself, for a capture lets some types pass that it does not run on.
            problem = wrong_input(model, args, kwargs)
            if problem is not None:
                raise TraceError(f"batch {number} of the calibration data: {problem}")
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


def _course(graph: Graph) -> Course:
    if graph.recorded:
        raise TraceError(
            "this model can only be captured as one recorded run, as its course depends on the "
            "data, or it calls `torch.vmap`, so calibration batches cannot be run through it. "
            "Prune it without `calibration`, or give the part that is not post-processing"
        )
    return Course(graph)


def _kind(course: Course) -> tuple[tuple[str, str], ...]:
    return tuple((node.name, node.op) for node in course.nodes)


def lane(course: Course, batch: Arguments, tensors: Values) -> Lane:
    """Put a batch at the start, with these parameters and buffers (by the user's names)."""
    # Copies: operators that write in place would write to the user's data.
    inputs = {name: tensor.clone() for name, tensor in bind(course.graph, *batch).items()}
    return course.lane(inputs, tensors)
