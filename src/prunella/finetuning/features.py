"""What a model makes on the way to its outputs, beside what its teacher makes there.

A plan says which of the teacher's channels a pruned model still has. So features of different
width compare channel by channel, without a layer that learns to translate between them.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from prunella.errors import TaskError
from prunella.model.carrying import plan_of
from prunella.model.modes import evaluating
from prunella.model.outputs import tensors_in
from prunella.model.structure import canonical_names
from prunella.plan import Indices, Plan, compose

Side = Literal["in", "out"]
Place = tuple[str, Side]
"""A module's name, and whether what it reads or what it makes is meant."""


@dataclass(frozen=True, slots=True)
class Point:
    """A place in both models, and which channels of it are compared; None: all.

    Attributes:
        place: Module and side.
        dim: Dimension of the channels there.
        mine: Channels of the model; those not removed where training is masked.
        theirs: The same channels in the teacher.
    """

    place: Place
    dim: int
    mine: tuple[int, ...] | None
    theirs: tuple[int, ...] | None

    def __str__(self) -> str:
        """Say where, for messages."""
        module, side = self.place
        return f"what `{module}` {'reads' if side == 'in' else 'makes'}"


def points_of(
    model: nn.Module, teacher: nn.Module, inputs: tuple[Any, ...], plan: Plan | None = None
) -> tuple[Point, ...]:
    """Choose the points: the last that is seen at each resolution.

    What convolutions and linear layers read is seen, and what they and norms make. In a residual
    network the last at a resolution is what the next stage reads, the whole stream. A resolution
    is a shape without samples and channels. What enters and leaves the model itself is no point.

    Args:
        model: Carries the plan that led to it from the teacher, if it was pruned.
        teacher: The original model.
        inputs: On which both run once, in evaluation mode.
        plan: What is held at zero, where training is masked.

    Raises:
        TaskError: There is none.
    """
    whole = plan_of(model)
    if plan is not None:
        whole = compose(whole, plan) if whole else plan
    names, modules = canonical_names(teacher), dict(teacher.named_modules())
    mine, _ = _seen(model, inputs)
    theirs, outputs = _seen(teacher, inputs)
    ends = {id(value) for value in (*tensors_in(inputs), *tensors_in(outputs))}
    last: dict[tuple[int, ...], Point] = {}
    for place, feature in theirs.items():
        module, side = place
        found = _channels(modules[module])[side]
        tensor = names.get(f"{module}.{found.tensor}" if module else found.tensor)
        if tensor is None or place not in mine or id(feature) in ends:
            continue
        whole_there = _there(found, modules[module], feature)
        if whole_there and _there(found, model.get_submodule(module), mine[place]):
            point = Point(
                place, found.dim, _kept(plan, tensor, found.axis), _kept(whole, tensor, found.axis)
            )
            sizes = list(feature.shape[1:])
            del sizes[found.dim - 1 if found.dim > 0 else found.dim]
            last[tuple(sizes)] = point
    if not last:
        raise TaskError(
            "learning from the teacher's features needs modules of torch (convolutions, linear "
            "layers, norms) that both models call by the same names, and none was seen. Set "
            "`feature_distill = 0`"
        )
    return tuple(last.values())


class Features:
    """Collects what two models make at the points, one step after the other.

    Args:
        model: Hooked until `close`.
        teacher: The same.
        points: Where.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module, points: tuple[Point, ...]) -> None:
        self._points = points
        places = [point.place for point in points]
        self._mine: dict[Place, Tensor] = {}
        self._theirs: dict[Place, Tensor] = {}
        self._hooks = ExitStack()
        self._hooks.enter_context(_listening(model, places, self._mine))
        self._hooks.enter_context(_listening(teacher, places, self._theirs))

    def take(self) -> list[tuple[Tensor, Tensor]]:
        """Hand out the pairs of the last step; a module that was skipped in it has none."""
        pairs = [
            (
                _pick(self._mine[point.place], point.dim, point.mine),
                _pick(self._theirs[point.place], point.dim, point.theirs),
            )
            for point in self._points
            if point.place in self._mine and point.place in self._theirs
        ]
        self.drop()
        return pairs

    def drop(self) -> None:
        """Forget what was seen, which may be large."""
        self._mine.clear()
        self._theirs.clear()

    def close(self) -> None:
        """Take the hooks away."""
        self._hooks.close()
        self.drop()


@dataclass(frozen=True, slots=True)
class _Channels:
    """Which dimension `axis` of which own tensor counts the channels along `dim` of a feature."""

    tensor: str
    axis: int
    dim: int


def _channels(module: nn.Module) -> dict[Side, _Channels]:
    if isinstance(module, nn.Linear):
        return {"in": _Channels("weight", 1, -1), "out": _Channels("weight", 0, -1)}
    if isinstance(module, _ConvTransposeNd):
        ends: dict[Side, _Channels] = {"in": _Channels("weight", 0, 1)}
        if module.groups == 1:
            ends["out"] = _Channels("weight", 1, 1)
        return ends
    if isinstance(module, _ConvNd):
        ends = {"out": _Channels("weight", 0, 1)}
        if module.groups == 1:
            ends["in"] = _Channels("weight", 1, 1)
        return ends
    if isinstance(module, _NormBase):
        return {"out": _Channels("running_mean" if module.weight is None else "weight", 0, 1)}
    if isinstance(module, nn.GroupNorm):
        return {"out": _Channels("weight", 0, 1)}
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        return {"out": _Channels("weight", 0, -1)}
    return {}


def _seen(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[dict[Place, Tensor], Any]:
    """Run a model; return what was seen, in the order of what was seen last, and its outputs."""
    seen: dict[Place, Tensor] = {}
    places = [(name, side) for name, module in model.named_modules() for side in _channels(module)]
    with torch.no_grad(), evaluating(model), _listening(model, places, seen):
        return seen, model(*inputs)


def _listening(model: nn.Module, places: Iterable[Place], seen: dict[Place, Tensor]) -> ExitStack:
    """Write what passes the places into `seen`, until the stack is closed."""
    hooks = ExitStack()
    for place in places:
        module = model.get_submodule(place[0])
        if place[1] == "in":
            handle = module.register_forward_pre_hook(_reads(place, seen))
        else:
            handle = module.register_forward_hook(_makes(place, seen))
        hooks.callback(handle.remove)
    return hooks


def _reads(place: Place, seen: dict[Place, Tensor]) -> Callable[..., None]:
    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs:
            _note(place, inputs[0], seen)

    return hook


def _makes(place: Place, seen: dict[Place, Tensor]) -> Callable[..., None]:
    def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        _note(place, output, seen)

    return hook


def _note(place: Place, value: Any, seen: dict[Place, Tensor]) -> None:
    if isinstance(value, Tensor):
        seen.pop(place, None)  # so that the order is that of the last calls
        seen[place] = value


def _kept(plan: Plan | None, tensor: str, axis: int) -> tuple[int, ...] | None:
    """Return the kept indices of an axis; None where it is whole."""
    indices: Indices | None = plan.kept.get(tensor, {}).get(axis) if plan else None
    return None if indices is None else tuple(int(index) for index in indices)  # type: ignore[arg-type]


def _pick(feature: Tensor, dim: int, channels: tuple[int, ...] | None) -> Tensor:
    if channels is None:
        return feature
    return feature.index_select(dim, torch.tensor(channels, device=feature.device))


def _there(found: _Channels, module: nn.Module, feature: Tensor) -> bool:
    """Tell whether the channels are where they are looked for; a subclass may have moved them."""
    own = getattr(module, found.tensor, None)
    if not isinstance(own, Tensor) or feature.dim() <= max(found.dim, 1):
        return False
    return bool(feature.shape[found.dim] == own.shape[found.axis])
