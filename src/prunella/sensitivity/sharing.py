"""Evaluate variants of a model that differ from some layer on, computing what is before it once."""

import logging
import time
import types
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from itertools import count
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules import module as global_hooks

from prunella.errors import PrunellaError
from prunella.model.blame import first_line
from prunella.model.structure import device_of, free_bytes, tensors
from prunella.replaying import Course
from prunella.sensitivity.recorded import Batch, Casting, Returned
from prunella.sensitivity.route import Route, part_size, parted
from prunella.tracing import trace

Evaluate = Callable[[nn.Module], float]
State = dict[str, tuple[int, int]]

_SHAPES = 4
"""So many kinds of batches are captured, the most frequent: each costs seconds."""

_PAYS = 10.0
"""Seconds of evaluations below which capturing costs more than it saves."""

log = logging.getLogger("prunella")


class Shared:
    """A model, and an evaluation of it that is made again and again.

    The evaluation of the dense model is recorded: which batches the model gets, and what it
    returns. Its graph is captured on batches of these shapes and must return the same, bit for bit.
    From then on the user's function is handed a stand-in for the model, which shares everything
    with it but runs, on a batch it knows, only the nodes behind a *frontier*: where they first read
    what is changed. Whatever is not as it was recorded runs as the model itself.

    Args:
        model: The dense model, in evaluation mode.
        evaluate: The user's function.
        memory: Bytes that may be kept; None: a quarter of what is free, and only where there is
            enough to evaluate that capturing pays. 0 keeps nothing: the model itself runs.
        workers: Processes that share the memory.
    """

    def __init__(
        self, model: nn.Module, evaluate: Evaluate, memory: int | None, workers: int = 1
    ) -> None:
        self._model = model
        self._evaluate = evaluate
        self._automatic = memory is None
        self._device = device_of(model)
        self._bound = free_bytes(self._device) // 4 if memory is None else memory
        self._mode: Literal["plain", "record", "share"] = "plain"
        self._recorded: list[Batch] | None = None
        self._full = False
        self._used = 0
        self._frontier: frozenset[str] = frozenset()
        self._seconds: float | None = None
        self._told: set[str] = set()
        self._index = count()
        self._state: State = {}
        self._before: State = {}
        self._changed: frozenset[str] = frozenset()
        self._off = self._bound == 0
        self._stand_in = model
        if not self._off:
            try:
                self._stand_in = _stand_in(model, self._call)
            except TypeError as error:
                self._give_up(f"`{type(model).__name__}` cannot be stood in for: {error}")

    @property
    def sharing(self) -> int:
        """Count the batches whose beginning is computed once."""
        batches = [] if self._off or self._mode != "share" else self._recorded or []
        return sum(batch.live is not None for batch in batches)

    def dense(self) -> float:
        """Evaluate the dense model."""
        if self._off:
            return self._evaluate(self._model)
        self._recorded, self._full, self._used = [], False, 0
        return self._timed("record")

    def ready(self, touched: Collection[str], left: int) -> None:
        """Compute once what does not depend on these tensors; the model is dense at this moment.

        Args:
            touched: Names of the parameters and buffers that are about to change.
            left: How many evaluations are to come, for whether it pays.
        """
        self._before = _state(self._model)
        if self._off or frozenset(touched) == self._frontier:
            return
        if self._automatic and self._mode != "share":
            if self._seconds is None:
                return  # the first evaluation tells how long one takes
            if self._seconds * left < _PAYS:
                self._off = True
                return
        if self._recorded is None:
            self.dense()
        if self._mode != "share":
            self._prove()
        if not self._off:
            self._mode = "share"
            self._move(touched)
            self._frontier = frozenset(touched)

    def changed(self) -> float:
        """Evaluate the model, which now differs from the dense one."""
        now = _state(self._model)
        self._changed = frozenset(n for n in now if now[n] != self._before.get(n))
        return self._timed("share" if self._mode == "share" else "plain")

    # -- the user's function at work

    def _timed(self, mode: Literal["plain", "record", "share"]) -> float:
        if self._off:
            return self._evaluate(self._model)
        self._mode, self._index = mode, count()
        self._state = _state(self._model)
        began = time.perf_counter()
        value = self._evaluate(self._stand_in)
        self._seconds = time.perf_counter() - began
        return value

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        index = next(self._index)
        if self._mode == "record":
            return self._record(args, kwargs)
        if self._mode == "plain":
            return self._model(*args, **kwargs)
        batch = (self._recorded or [])[index : index + 1]
        unlike = self._unlike(batch[0], args, kwargs) if batch else "there are more than before"
        if unlike:
            self._tell(f"some batches run through the whole model: {unlike}")
        if unlike or not self._begun(batch[0]):
            return self._model(*args, **kwargs)
        route, live = batch[0].route, batch[0].live
        assert route is not None and live is not None, "it has begun"  # noqa: PT018
        return route.finish(live, batch[0].position, tensors(self._model))

    def _begun(self, batch: Batch) -> bool:
        """Say whether a batch's beginning is kept, and is before all that was changed."""
        if batch.live is None or batch.route is None:
            return False
        return batch.route.course.first_use(self._changed) >= batch.position

    def _record(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        batches = self._recorded
        assert batches is not None, "`dense` begins the record"
        if self._full or self._hindrance():
            self._full = True  # what comes behind a batch that is not recorded is not either
            return self._model(*args, **kwargs)
        batch = Batch.of(args, kwargs, self._device.type)
        returned = self._model(*args, **kwargs)
        batch.returned = Returned.of(returned)
        self._used += batch.bytes + batch.returned.bytes
        if self._used > self._bound:
            self._full = True
            self._tell(f"only the first {len(batches)} batches fit {self._bound:,} bytes")
        else:
            batches.append(batch)
        return returned

    def _unlike(self, batch: Batch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Say what keeps a call of the model from being the one that was recorded."""
        if Casting.now(self._device.type) != batch.casting:
            return "another autocast"
        if not batch.same(args, kwargs):
            return "they differ from one evaluation to the next"
        return self._hindrance()

    def _hindrance(self) -> str:
        """Say what keeps the graph from running in the model's place now."""
        if torch.is_grad_enabled():
            return "gradients are on; evaluate under `torch.no_grad()`"
        modules = list(self._model.modules())
        if any(module.training for module in modules):
            return "the model is in training mode"
        hooks = (global_hooks._global_forward_hooks, global_hooks._global_forward_pre_hooks)
        if any(hooks) or any(m._forward_hooks or m._forward_pre_hooks for m in modules):
            return "hooks are registered on its modules, which a graph does not call"
        if _state(self._model) != self._state:
            return "its tensors are changed while it is evaluated"
        return ""

    # -- between evaluations

    @torch.no_grad()
    def _prove(self) -> None:
        """Capture the model on the batches' shapes, and compare what the graphs return."""
        batches = self._recorded or []
        if not batches:
            self._give_up("the function does not call it, or with gradients on, or with hooks")
            return
        for kind, _ in Counter(batch.kind() for batch in batches).most_common(_SHAPES):
            alike = [batch for batch in batches if batch.kind() == kind]
            left = alike
            for route in self._routes(alike[0]):
                for batch in left:
                    batch.route = route if self._proven(batch, route) else None
                left = [batch for batch in alike if batch.route is None]
                if not left:
                    break
            if left and not self._off:
                self._tell("some batches run through the whole model: its graph differs there")
        for batch in batches:
            batch.returned = None
        if not any(batch.route for batch in batches):
            self._give_up("its graph does not compute the same numbers, bit for bit")

    def _routes(self, batch: Batch) -> Iterator[Route]:
        """Capture the model for batches of one kind: in parts where that is faster, then whole."""
        whole = self._captured(batch.args, batch.kwargs)
        if whole is None:
            return
        samples = whole.graph.samples
        size = part_size(whole) if self._device.type == "cpu" else samples
        if size < samples:
            part = self._captured(*parted(batch.args, batch.kwargs, samples, size)[0])
            if part is not None and part.graph.samples == size:
                yield Route(part, samples // size)
        yield Route(whole)

    def _captured(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Course | None:
        try:
            with torch.autocast(self._device.type, enabled=False):
                course = Course(trace(self._model, args, kwargs))
        except PrunellaError as error:
            self._tell(f"nothing is shared between evaluations: {first_line(error)}")
            return None
        obstacle = course.obstacle()
        if obstacle:
            self._tell(f"nothing is shared between evaluations of the model: {obstacle}")
            return None
        return course

    def _proven(self, batch: Batch, route: Route) -> bool:
        assert batch.returned is not None, "it is recorded"
        try:
            with batch.casting.entered():
                live = route.begin(batch.args, batch.kwargs)
                returned = route.finish(live, 0, tensors(self._model))
        except Exception as error:  # noqa: BLE001 - whatever an operator says
            if route.parts == 1:  # else the whole batch may still do
                self._tell(f"the graph of the model does not run by itself: {first_line(error)}")
            return False
        return batch.returned.equals(returned)

    @torch.no_grad()
    def _move(self, touched: Collection[str]) -> None:
        """Bring every batch to where the graph first reads one of these tensors."""
        batches, named = self._recorded or [], tensors(self._model)
        kept = sum(batch.bytes for batch in batches)
        waiting = []
        for batch in batches:
            if batch.route is None:
                continue
            position = batch.route.course.first_use(touched)
            kept += batch.route.size(position)
            if kept > self._bound:
                batch.live = None
                self._tell(
                    f"the beginnings of all batches do not fit {self._bound:,} bytes, so some run "
                    "through the whole model"
                )
            else:
                waiting.append((batch, batch.route, position))
        for batch, route, position in waiting:
            with batch.casting.entered():
                if batch.live is None or batch.position > position:
                    batch.live, batch.position = route.begin(batch.args, batch.kwargs), 0
                batch.live = route.run(batch.live, batch.position, position, named)
                batch.position = position

    def _give_up(self, why: str) -> None:
        self._off, self._recorded = True, None
        self._tell(f"nothing is shared between evaluations of the model: {why}")

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            log.info("%s", text)


def _stand_in(model: nn.Module, call: Callable[..., Any]) -> nn.Module:
    """Return a module of a class of the model's, with the same state, that is called otherwise.

    Copied or sent to another process it is the model.
    """
    kind = type(model)

    def fill(body: dict[str, Any]) -> None:
        body["__call__"] = lambda self, *args, **kwargs: call(*args, **kwargs)
        body["__reduce_ex__"] = lambda self, protocol: model.__reduce_ex__(protocol)
        body["__module__"], body["__qualname__"] = kind.__module__, kind.__qualname__

    made: nn.Module = object.__new__(types.new_class(kind.__name__, (kind,), exec_body=fill))
    object.__setattr__(made, "__dict__", model.__dict__)
    return made


def _state(model: nn.Module) -> State:
    """Tell for every tensor of a model which it is, and how often it was written to."""
    return {
        name: (id(tensor), -1 if tensor.is_inference() else tensor._version)
        for name, tensor in tensors(model).items()
    }
