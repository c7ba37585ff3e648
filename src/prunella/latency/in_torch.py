"""A bench for torch: eager, every operator is timed where it is called; compiled, the whole."""

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from prunella.latency.measured import Place, Sample
from prunella.latency.moulding import NoMouldError, link
from prunella.latency.subject import Subject
from prunella.latency.whole import clock_for, low, repeat, time_whole
from prunella.model.modes import unfused_attention
from prunella.plan import Plan
from prunella.runtimes import Prepared, Runtime, prepare

Shapes = tuple[tuple[int, ...], ...]


class _Clock(TorchDispatchMode):
    """Notes how long every operator takes, and the shapes of what it reads and makes."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.clock, self.waits = clock_for(runtime), runtime.device != "cpu"
        self.calls: list[tuple[str, float, Shapes]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        began = self.clock()
        made = func(*args, **(kwargs or {}))
        if self.waits:
            torch.accelerator.synchronize()
        took = (self.clock() - began) / 1e6
        leaves = pytree.tree_leaves((args, kwargs, made))
        shapes = tuple(tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor))
        self.calls.append((str(func), took, shapes))
        return made


class TorchBench:
    """Times networks in eager torch, operator by operator, or as wholes in compiled torch.

    Args:
        subject: The network.
        runtime: torch, with its options.
    """

    def __init__(self, subject: Subject, runtime: Runtime) -> None:
        self._subject, self._runtime = subject, runtime

    @cached_property
    def places(self) -> Mapping[str, Place]:
        """The regions by name: every call of an operator is one, if the same are called always."""
        if self._runtime.name != "torch":
            return {}
        plans = self._subject.telling()
        known = np.array([self._subject.lengths(plan) for plan in plans])
        runs = []
        for plan in plans:
            with self._prepared(plan) as ready:
                runs.append(_calls(ready))
        found: dict[str, Place] = {}
        if any([op for op, _, _ in run] != [op for op, _, _ in runs[0]] for run in runs):
            return found  # which operators are called depends on the widths
        for i, call in enumerate(runs[0]):
            sizes = [
                link_or_none([run[i][2][t] for run in runs], known) for t in range(len(call[2]))
            ]
            widths = {int(w) for size in sizes for w in size if w >= 0}
            twice = {w for w in widths if any((size == w).sum() > 1 for size in sizes)}
            found[_name(i, call[0])] = Place(call[0], tuple(sorted(widths)), tuple(sorted(twice)))
        return found

    def time(self, plan: Plan | None) -> Sample:
        """Time the network of a plan, or the dense one."""
        with self._prepared(plan) as ready:
            looks: list[list[tuple[str, float, Shapes]]] = []
            if self._runtime.name == "torch":
                repeat(lambda: looks.append(_calls(ready)))
            inside = {
                _name(i, calls[0][0]): low([took for _, took, _ in calls[1:]])
                for i, calls in enumerate(zip(*looks, strict=True))
            }
            return Sample(self._subject.lengths(plan), inside, time_whole(ready))

    def _prepared(self, plan: Plan | None) -> Prepared:
        return prepare(self._subject.pruned(plan), *self._subject.inputs, self._runtime)


def link_or_none(shapes: list[tuple[int, ...]], known: np.ndarray) -> np.ndarray:
    """Say which width each size of a tensor follows, -1 where none."""
    try:
        return link(np.array(shapes, dtype=np.int64), known).width
    except NoMouldError:
        return np.full(len(shapes[0]), -1)


def _calls(ready: Prepared) -> list[tuple[str, float, Shapes]]:
    clock = _Clock(ready.runtime)
    with unfused_attention(), clock:  # the same operators at all widths; the whole runs as it does
        ready.run()
    return clock.calls


def _name(place: int, op: str) -> str:
    return f"{place}:{re.sub(r'^aten[.]|[.]default$', '', op)}"
