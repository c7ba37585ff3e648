"""Evaluate variants of a model that differ from some layer on, computing what is before it once."""

import logging
import time
import types
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.utils import _pytree as pytree

from prunella.errors import PrunellaError
from prunella.model.blame import first_line
from prunella.model.containers import emptied
from prunella.model.outputs import tensors_in
from prunella.model.structure import device_of, free_bytes, tensors
from prunella.replaying import Course, bind, kind_of
from prunella.tracing import trace

Evaluate = Callable[[nn.Module], float]
State = dict[str, tuple[int, int]]

_SHAPES = 4
"""So many kinds of batches are captured, the most frequent: each costs seconds."""

_PAYS = 10.0
"""Seconds of evaluations below which capturing costs more than it saves."""

log = logging.getLogger("prunella")


@dataclass(frozen=True, slots=True)
class _Casting:
    """The autocast that a call of the model was under."""

    device: str
    enabled: bool
    dtype: torch.dtype

    @staticmethod
    def now(device: str) -> "_Casting":
        enabled = torch.is_autocast_enabled(device)
        return _Casting(device, enabled, torch.get_autocast_dtype(device))

    def entered(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device, dtype=self.dtype, enabled=self.enabled)


@dataclass(eq=False, slots=True)
class _Batch:
    """One call of the model in an evaluation: the second batch is the second call.

    Attributes:
        args: A copy of the arguments.
        kwargs: A copy of the keyword arguments.
        strides: The strides of the tensors among them, which decide between kernels.
        casting: The autocast it was under.
        returned: What the model returned; dropped once the course is proven.
        course: The model's graph for such inputs; None where there is none.
        position: How far the values in `live` are.
        live: What is live there; None where it is not kept.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    strides: list[tuple[int, ...]]
    casting: _Casting
    returned: Any
    course: Course | None = None
    position: int = 0
    live: dict[str, Tensor] | None = None

    @property
    def inputs(self) -> Any:
        return self.args, self.kwargs

    def kind(self) -> str:
        """Tell batches apart that need a capture of their own."""
        return kind_of(self.args, self.kwargs)


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
        self._recorded: list[_Batch] | None = None
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
        return self._finish(batch[0])

    def _begun(self, batch: _Batch) -> bool:
        """Say whether a batch's beginning is kept, and is before all that was changed."""
        if batch.live is None or batch.course is None:
            return False
        return batch.course.first_use(self._changed) >= batch.position

    def _record(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        batches = self._recorded
        assert batches is not None, "`dense` begins the record"
        if self._full or self._hindrance():
            self._full = True  # what comes behind a batch that is not recorded is not either
            return self._model(*args, **kwargs)
        leaves = pytree.tree_leaves((args, kwargs))
        strides = [leaf.stride() for leaf in leaves if isinstance(leaf, Tensor)]
        casting = _Casting.now(self._device.type)
        kept = _copied((args, kwargs))
        returned = self._model(*args, **kwargs)
        batch = _Batch(kept[0], kept[1], strides, casting, _copied_all(returned))
        self._used += _bytes(batch.inputs) + _bytes(batch.returned)
        if self._used > self._bound:
            self._full = True
            self._tell(f"only the first {len(batches)} batches fit {self._bound:,} bytes")
        else:
            batches.append(batch)
        return returned

    def _unlike(self, batch: _Batch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Say what keeps a call of the model from being the one that was recorded."""
        if _Casting.now(self._device.type) != batch.casting:
            return "another autocast"
        if not _same(batch, (args, kwargs)):
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

    def _finish(self, batch: _Batch) -> Any:
        assert batch.course is not None
        assert batch.live is not None
        named = tensors(self._model)
        end = batch.course.run(batch.live, batch.position, batch.course.end, named)
        kept = {t.untyped_storage().data_ptr() for t in batch.live.values()}
        mine = {
            n: t.clone() if t.untyped_storage().data_ptr() in kept else t for n, t in end.items()
        }
        return batch.course.returned(mine, named)

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
            course = self._captured(alike[0])
            if course is None:
                continue
            for batch in alike:
                if self._proven(batch, course):
                    batch.course = course
                else:
                    self._tell("some batches run through the whole model: its graph differs there")
        for batch in batches:
            batch.returned = None
        if not any(batch.course for batch in batches):
            self._give_up("its graph does not compute the same numbers, bit for bit")

    def _captured(self, batch: _Batch) -> Course | None:
        try:
            with torch.autocast(self._device.type, enabled=False):
                course = Course(trace(self._model, batch.args, batch.kwargs))
        except PrunellaError as error:
            self._tell(f"nothing is shared between evaluations: {first_line(error)}")
            return None
        obstacle = course.obstacle()
        if obstacle:
            self._tell(f"nothing is shared between evaluations of the model: {obstacle}")
            return None
        return course

    def _proven(self, batch: _Batch, course: Course) -> bool:
        named = tensors(self._model)
        try:
            with batch.casting.entered():
                inputs = bind(course.graph, batch.args, batch.kwargs)
                end = course.run(inputs, 0, course.end, named)
                returned = course.returned(end, named)
        except Exception as error:  # noqa: BLE001 - whatever an operator says
            self._tell(f"the graph of the model does not run by itself: {first_line(error)}")
            return False
        return _identical(returned, batch.returned)

    @torch.no_grad()
    def _move(self, touched: Collection[str]) -> None:
        """Bring every batch to where the graph first reads one of these tensors."""
        batches, named = self._recorded or [], tensors(self._model)
        kept = sum(_bytes(batch.inputs) for batch in batches)
        waiting = []
        for batch in batches:
            if batch.course is None:
                continue
            position = batch.course.first_use(touched)
            kept += batch.course.size(position)
            if kept > self._bound:
                batch.live = None
                self._tell(
                    f"the beginnings of all batches do not fit {self._bound:,} bytes, so some run "
                    "through the whole model"
                )
            else:
                waiting.append((batch, batch.course, position))
        for batch, course, position in waiting:
            with batch.casting.entered():
                if batch.live is None or batch.position > position:
                    batch.live = bind(course.graph, batch.args, batch.kwargs)
                    batch.position = 0
                batch.live = course.run(batch.live, batch.position, position, named)
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


def _copied(inputs: Any) -> tuple[Any, ...]:
    # Not as tensors of inference mode, which cannot be traced with.
    with torch.inference_mode(mode=False):
        return tuple(pytree.tree_map_only(Tensor, _copy, inputs))


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


@dataclass(frozen=True, slots=True)
class _Returned:
    """What a model returned: its containers, and copies of the tensors in them."""

    shell: Any
    tensors: tuple[Tensor, ...]


def _copied_all(returned: Any) -> _Returned:
    shell = emptied(returned, map(str, count()))
    return _Returned(shell, tuple(map(_copy, tensors_in(returned))))


def _identical(returned: Any, recorded: _Returned) -> bool:
    """Say whether two outputs are the same, bit for bit and container for container."""
    shell = emptied(returned, map(str, count()))
    found = tuple(tensors_in(returned))
    return (
        bool(shell == recorded.shell)
        and len(found) == len(recorded.tensors)
        and all(map(_equal, found, recorded.tensors))
    )


def _same(batch: _Batch, given: Any) -> bool:
    """Say whether the model is given what was recorded."""
    leaves, structure = pytree.tree_flatten(given)
    known, shape = pytree.tree_flatten(batch.inputs)
    if structure != shape:
        return False
    strides = [leaf.stride() for leaf in leaves if isinstance(leaf, Tensor)]
    return strides == batch.strides and all(map(_equal, leaves, known))


def _equal(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other) and bool(one == other)
    if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
        return False
    return torch.equal(_bits(one), _bits(other))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)


def _bytes(value: Any) -> int:
    found = value.tensors if isinstance(value, _Returned) else pytree.tree_leaves(value)
    return sum(t.numel() * t.element_size() for t in found if isinstance(t, Tensor))
