"""Let the config of a pruned Hugging Face model say its new sizes.

Such a model is rebuilt from its config alone, so the config has to describe the pruned shapes.
Which of its numbers set which sizes is not looked up: each number is doubled in turn, the class is
built without memory, and the sizes that moved are those the number sets. New values follow from a
small least-squares problem in logarithms. Nothing found this way is trusted: the class built from
the new config must have every shape of the pruned model, and compute the same with its weights.
"""

import copy
import logging
import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunella.errors import ConfigError
from prunella.model.blame import first_line
from prunella.model.examples import Arguments
from prunella.model.modes import evaluating
from prunella.model.outputs import tensors_in
from prunella.model.structure import device_of, tensors

Key = tuple[str, int | str]
"""A size: (tensor, dimension) or (module, attribute)."""

Place = tuple[str | int, ...]
"""Where a number stands in a config's dict: ("vision_config", "hidden_size")."""

_TRIES = 24  # configs built at most; one is enough where shapes settle everything, as products
_SLACK = 0.02  # in powers of two: sizes that are rounded (`int(8 / 3 * n)`) do not grow exactly
_TOLERANCE = 1e-3  # relative; a config that computes something else is off by far more


def reconfigure(
    model: nn.Module, pruned: nn.Module, example: Arguments | None = None
) -> str | None:
    """Let `pruned.config` describe the pruned shapes, so that `from_pretrained` restores them.

    Concerns the model itself, or the outermost Hugging Face models it contains; a model without a
    config is left alone. Where no config describes the pruned shapes, `pruned.save_pretrained`
    raises a `ConfigError` that says why, instead of writing files nobody can load.

    Args:
        model: The model before pruning.
        pruned: What `transform` made of it; its config objects are changed in place.
        example: Inputs on which the model built from the new config is compared with `pruned`.
            Without them only shapes are.

    Returns:
        None where all configs fit, else why one does not, in one sentence.
    """
    paths = list(_configured(pruned))
    calls = _calls(pruned, paths, example) if paths and example else {}
    reasons = []
    for path in paths:
        small = pruned.get_submodule(path)
        vars(small).pop("save_pretrained", None)  # of an earlier pruning that no config described
        reason = _refit(model.get_submodule(path), small, calls.get(path))
        if reason:
            vars(small)["save_pretrained"] = _Refusal(type(small).__name__, reason)
            reasons.append(reason)
    return "; ".join(reasons) or None


@dataclass(frozen=True)
class _Refusal:
    """Stands in for the `save_pretrained` of a model that no config describes."""

    model: str
    reason: str

    def __call__(self, *_: Any, **__: Any) -> None:
        raise ConfigError(
            f"`from_pretrained` could not restore this pruned `{self.model}`: {self.reason}. Save "
            "it with `prunella.save` and load it with `prunella.load`"
        )


def _configured(model: nn.Module) -> Iterator[str]:
    """Find the outermost modules that are saved with a config."""
    found: list[str] = []
    for name, module in model.named_modules():
        config = getattr(module, "config", None)
        inside = any(not outer or name.startswith(f"{outer}.") for outer in found)
        if not inside and all(
            callable(getattr(owner, method, None))
            for owner, method in (
                (config, "to_dict"),
                (type(config), "from_dict"),
                (module, "save_pretrained"),
            )
        ):
            found.append(name)
            yield name


def _refit(model: Any, pruned: Any, call: "_Call | None") -> str | None:
    """Find and write the config of one pruned model; return why there is none."""
    blueprint = _Blueprint(type(pruned), type(model.config))
    written: dict[str, Any] = model.config.to_dict()
    dense = blueprint.sizes(written)
    if dense is None:
        return f"its class cannot be built from its config alone ({blueprint.failure})"
    goal = _goal(dense, _sizes(pruned))
    if _agrees(dense, goal):
        return None
    found, reason = _solve(blueprint, written, goal)
    if not found:
        stated = _state(blueprint, written, dense, goal)
        found, reason = _solve(blueprint, stated, goal) if stated != written else (found, reason)
    for numbers in found:
        derived = _derive(blueprint, written, numbers)
        rebuilt = blueprint.with_tensors_of(pruned, derived)
        if rebuilt is None:
            reason = f"the model that fits does not load ({blueprint.failure})"
        elif call is not None and (difference := call.difference(rebuilt)):
            reason = difference
        else:
            _write(pruned, rebuilt)
            return None
    return reason


# -- what a class and a config make


@dataclass(frozen=True)
class _Sizes:
    """The sizes of a model's tensors, and of whatever its modules remember as integers.

    `standard` names the modules of torch's own classes.
    """

    shapes: dict[Key, int]
    attributes: dict[Key, int]
    standard: frozenset[str]


def _sizes(model: nn.Module) -> _Sizes:
    shapes: dict[Key, int] = {
        (name, dim): size
        for name, tensor in tensors(model).items()
        for dim, size in enumerate(tensor.shape)
    }
    attributes: dict[Key, int] = {}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, int) and not isinstance(value, bool) and attribute[0] != "_":
                attributes[name, attribute] = int(value)
    standard = frozenset(
        name for name, module in model.named_modules() if type(module).__module__[:6] == "torch."
    )
    return _Sizes(shapes, attributes, standard)


def _nothing(model: nn.Module) -> None:
    """Leave the weights as they are."""


@dataclass
class _Blueprint:
    """Builds the user's class from the dict of a config."""

    kind: Any
    config_kind: Any
    failure: str = ""
    _known: dict[str, _Sizes | None] = field(default_factory=dict)

    def build(self, written: Mapping[str, Any], device: torch.device | str) -> Any:
        """Build the class with arbitrary weights; None (and `failure`) where it refuses."""
        try:
            with ExitStack() as stack:
                for context in (
                    _unheard(), torch.random.fork_rng([]), torch.device(device), _Unfilled()
                ):  # fmt: skip
                    stack.enter_context(context)
                if hasattr(self.kind, "initialize_weights"):
                    # It may draw until all numbers are right, and nothing is ever filled here.
                    stack.enter_context(
                        mock.patch.object(self.kind, "initialize_weights", _nothing)
                    )
                return self.kind(self._config(written))
        except Exception as error:  # noqa: BLE001 - whatever the class's own code raises
            self.failure = f"{type(error).__name__}: {first_line(error)}"
            return None

    def _config(self, written: Mapping[str, Any]) -> Any:
        return self.config_kind.from_dict(copy.deepcopy(dict(written)))

    def without(self, written: Mapping[str, Any], place: Place) -> Any:
        """Return the value a config works out for a number that is left out, None if it fails."""
        short = copy.deepcopy(dict(written))
        del _get(short, place[:-1])[place[-1]]
        try:
            with _unheard():
                return _get(self._config(short).to_dict(), place)
        except Exception:  # noqa: BLE001 - whatever the class's own code raises
            return None

    def sizes(self, written: Mapping[str, Any]) -> _Sizes | None:
        """Tell the sizes of what a config describes, None where it describes nothing."""
        key = repr(written)
        if key not in self._known:
            built = self.build(written, "meta")
            self._known[key] = None if built is None else _sizes(built)
        return self._known[key]

    def with_tensors_of(self, model: nn.Module, written: Mapping[str, Any]) -> Any:
        """Build the class as if loaded from a file of the model's tensors; they are shared."""
        built = self.build(written, device_of(model))
        if built is not None:
            try:
                built.load_state_dict(model.state_dict(), assign=True)
            except RuntimeError as error:
                self.failure = first_line(error)
                return None
        return built


class _Unfilled(TorchFunctionMode):
    """Leaves out random initialisation: it takes long, and the values are never used."""

    _RANDOM = frozenset({"normal_", "uniform_", "trunc_normal_", "erfinv_", "bernoulli_"})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self._RANDOM and args:
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def _unheard() -> Iterator[None]:
    """Keep a class from complaining about configs that only we shall ever see."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# -- which numbers give the pruned sizes


@dataclass(frozen=True)
class _Goal:
    """The sizes to reach. `hints`: attributes that did not change, or that nobody updated."""

    shapes: dict[Key, int]
    attributes: dict[Key, int]
    hints: dict[Key, int]


def _goal(dense: _Sizes, pruned: _Sizes) -> _Goal:
    known = {key: n for key, n in pruned.attributes.items() if key in dense.attributes}
    changed = {key: n for key, n in known.items() if n != dense.attributes[key]}
    hints = {key: n for key, n in known.items() if key not in changed}
    return _Goal(pruned.shapes, changed, hints)


def _agrees(found: _Sizes, goal: _Goal) -> bool:
    attributes = {key: found.attributes.get(key) for key in goal.attributes}
    return found.shapes == goal.shapes and attributes == goal.attributes


def _solve(
    blueprint: _Blueprint, written: dict[str, Any], goal: _Goal
) -> tuple[list[dict[str, Any]], str]:
    """Find values for a config's numbers that give the goal's sizes; or say what is in the way.

    Returns the likeliest first: shapes may leave something open (the number of heads).
    """
    places = [place for place, value in _leaves(written) if _is_count(value)]
    found: list[dict[str, Any]] = []
    reason = ""
    waiting, seen = [written], [written]
    while waiting:
        tried = waiting.pop(0)
        here = blueprint.sizes(tried)
        if here is None:
            reason = reason or f"its class does not take the sizes left ({blueprint.failure})"
        elif _agrees(here, goal):
            found.append(tried)
        elif here.shapes.keys() != goal.shapes.keys():
            reason = "its tensors have other names than those of a new model"
        else:
            powers = _powers(blueprint, tried, here, places)
            places = list(powers)
            rows = _rows(here, goal, powers)
            if conflict := _conflict(rows, places, here, goal):
                reason = conflict
                continue
            for steps in _steps(rows, len(places)):
                moved = copy.deepcopy(tried)
                for place, step in zip(places, steps, strict=True):
                    _put(moved, place, max(1, round(_get(tried, place) * 2.0**step)))
                if moved not in seen and len(seen) < _TRIES:
                    waiting.append(moved)
                    seen.append(moved)
    return found, reason or "no values of its config's numbers give the shapes that are left"


def _powers(
    blueprint: _Blueprint, written: dict[str, Any], here: _Sizes, places: Iterable[Place]
) -> dict[Place, dict[Key, float]]:
    """Say for each number of a config with which power each size grows with it.

    Numbers that change no size, or which tensors there are, are left out.
    """
    powers: dict[Place, dict[Key, float]] = {}
    before = {**here.attributes, **here.shapes}
    for place in places:
        doubled = copy.deepcopy(written)
        _put(doubled, place, 2 * _get(written, place))
        probe = blueprint.sizes(doubled)
        if probe is None or probe.shapes.keys() != here.shapes.keys():
            continue
        after = {**probe.attributes, **probe.shapes}
        moved = {
            key: round(math.log2(after[key] / size), 6)
            for key, size in before.items()
            if size > 0 and after.get(key, 0) > 0 and after[key] != size
        }
        if moved:
            powers[place] = moved
    return powers


@dataclass(frozen=True)
class _Row:
    """One equation: the powers of the config's numbers in a size, and how the size must change."""

    powers: tuple[float, ...]
    change: float
    hint: bool
    key: Key


def _rows(here: _Sizes, goal: _Goal, powers: Mapping[Place, Mapping[Key, float]]) -> list[_Row]:
    """Write one equation for each size, equal ones once."""
    rows: dict[tuple[Any, ...], _Row] = {}
    for wanted, found, hint in (
        (goal.shapes, here.shapes, False),
        (goal.attributes, here.attributes, False),
        (goal.hints, here.attributes, True),
    ):
        for key, size in wanted.items():
            now = found.get(key, 0)
            if now > 0 and size > 0:
                exponents = tuple(found_powers.get(key, 0.0) for found_powers in powers.values())
                row = _Row(exponents, math.log2(size / now), hint, key)
                rows.setdefault((exponents, row.change, hint), row)
    return list(rows.values())


def _conflict(rows: list[_Row], places: list[Place], here: _Sizes, goal: _Goal) -> str:
    """Say which two sizes must change differently though the config sets both alike."""
    alike: dict[tuple[float, ...], list[_Row]] = defaultdict(list)
    for row in rows:
        if not row.hint:
            alike[row.powers].append(row)
    wanted, now = ({**s.attributes, **s.shapes} for s in (goal, here))
    for powers, found in alike.items():
        found.sort(key=lambda row: row.change)
        numbers = [_spell(place) for place, p in zip(places, powers, strict=True) if p]
        named = [f"`{_name(r.key)}` ({wanted[r.key]} of {now[r.key]})" for r in found]
        if numbers and found[-1].change - found[0].change > _SLACK:
            return f"its config sets {named[0]} and {named[-1]} alike, by {', '.join(numbers)}"
        if not numbers and found[0].change:
            return f"nothing in its config sets the size of {named[0]}"
    return ""


def _steps(rows: list[_Row], count: int) -> Iterator[list[float]]:
    """Solve the equations; what shapes leave open is settled by hints, each of them first in turn.

    Hints contradict one another where nobody updated an attribute. Those that depend on several
    numbers come first: heads that are left keep their size, whatever their remembered number.
    """
    firm = [row for row in rows if not row.hint]
    hints = [row for row in rows if row.hint and any(row.powers)]
    hints.sort(key=lambda row: -sum(power != 0 for power in row.powers))
    for i in range(max(1, len(hints))):
        chosen = list(firm)
        rank = _rank(chosen, count)
        for row in [*hints[i:], *hints[:i]]:
            more = _rank([*chosen, row], count)
            if more > rank:
                chosen, rank = [*chosen, row], more
        changes = np.array([row.change for row in chosen])
        solution = np.linalg.lstsq(_matrix(chosen, count), changes, rcond=1e-9)[0]
        yield [float(step) for step in solution]


def _matrix(rows: list[_Row], count: int) -> np.ndarray:
    return np.array([row.powers for row in rows]).reshape(len(rows), count)


def _rank(rows: list[_Row], count: int) -> int:
    return int(np.linalg.matrix_rank(_matrix(rows, count), tol=1e-6)) if rows and count else 0


def _state(
    blueprint: _Blueprint, written: dict[str, Any], dense: _Sizes, goal: _Goal
) -> dict[str, Any]:
    """Spell out what a config leaves to be derived (`head_dim`), where its class reads it.

    Candidates are numbers that are None, and what modules call their own integers. A candidate
    counts where its dense value changes nothing, and twice that value does.
    """
    cut = {dense.shapes[key] for key, size in goal.shapes.items() if size != dense.shapes.get(key)}
    by_name: dict[str, set[int]] = defaultdict(set)
    for (module, attribute), size in dense.attributes.items():
        if module not in dense.standard:
            by_name[str(attribute)].add(size)
    for holder in _holders(written):
        section = _get(written, holder)
        absent = [name for name in by_name if name not in section]
        for name in [*(name for name, value in section.items() if value is None), *absent]:
            values = by_name.get(name) or (cut if name in section else set())
            for value in sorted(values - {0, 1}):
                stated, doubled = copy.deepcopy(written), copy.deepcopy(written)
                _put(stated, (*holder, name), value)
                _put(doubled, (*holder, name), 2 * value)
                same, other = blueprint.sizes(stated), blueprint.sizes(doubled)
                if same and other and same.shapes == dense.shapes:
                    written = stated if other.shapes != dense.shapes else written
                    break  # the value is the right one, or is not read at all
    return written


def _derive(blueprint: _Blueprint, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Update the numbers that a config works out from others (`pooler_output_size`)."""
    for holder in _holders(before):
        for name, value in _get(before, holder).items():
            place = (*holder, name)
            if _is_count(value) and blueprint.without(before, place) == value:
                derived = blueprint.without(after, place)
                moved = copy.deepcopy(after)
                _put(moved, place, derived)
                if derived and blueprint.sizes(moved) == blueprint.sizes(after):
                    after = moved
    return after


# -- numbers in the dict of a config


def _leaves(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*place, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, (*place, index))
    else:
        yield place, value


def _holders(written: dict[str, Any], place: Place = ()) -> Iterator[Place]:
    """List where configs stand: the whole, and those nested in it."""
    yield place
    for key, value in written.items():
        if isinstance(value, dict) and "model_type" in value:
            yield from _holders(value, (*place, key))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _get(written: Any, place: Place) -> Any:
    for key in place:
        written = written[key]
    return written


def _put(written: Any, place: Place, value: Any) -> None:
    holder = _get(written, place[:-1])
    if isinstance(holder, tuple):  # no config is saved with tuples: JSON has none
        parts = list(holder)
        parts[int(place[-1])] = value
        _put(written, place[:-1], parts)
    else:
        holder[place[-1]] = value


def _spell(place: Place) -> str:
    return f"`{'.'.join(map(str, place))}`"


def _name(key: Key) -> str:
    owner, where = key
    return f"{owner}[{where}]" if isinstance(where, int) else f"{owner}.{where}"


# -- does it compute the same


@dataclass
class _Call:
    """What a module was called with, and what it returned."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Tensor]

    def difference(self, rebuilt: nn.Module) -> str:
        """Say how far the rebuilt model is off on the same inputs; nothing where it is not."""
        said = "the new config has the right shapes, but the model built from it "
        try:
            found = list(tensors_in(_run(rebuilt, self.args, self.kwargs)))
        except Exception as error:  # noqa: BLE001 - whatever the class's own code raises
            return f"{said}does not run ({type(error).__name__}: {first_line(error)})"
        if [t.shape for t in found] != [t.shape for t in self.outputs]:
            return f"{said}returns other shapes"
        if all(map(_close, self.outputs, found)):
            return ""
        return f"{said}computes something else: its code uses a size as a number"


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    cuda = {t.device.index for t in tensors(model).values() if t.device.type == "cuda"}
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(sorted(cuda)):
        torch.manual_seed(0)
        return model(*copy.deepcopy(args), **copy.deepcopy(kwargs))


def _close(expected: Tensor, found: Tensor) -> bool:
    if expected.device.type == "meta" or not expected.numel():
        return True
    expected, found = expected.detach().cpu().double(), found.detach().cpu().double()
    finite = expected[expected.isfinite()].abs()
    allowed = _TOLERANCE * (finite.max().item() if finite.numel() else 1.0)
    return torch.allclose(found, expected, rtol=0, atol=allowed, equal_nan=True)


def _calls(model: nn.Module, paths: list[str], example: Arguments | None) -> dict[str, _Call]:
    """Run a model, and write down the first call of each of some submodules."""
    calls: dict[str, _Call] = {}
    if example is None:
        return calls

    def note(path: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            calls.setdefault(path, _Call(args, kwargs, list(tensors_in(output))))

        return hook

    handles = [
        model.get_submodule(path).register_forward_hook(note(path), with_kwargs=True)
        for path in paths
    ]
    args, kwargs = example
    try:
        _run(model, args, kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


# -- writing it down


def _write(pruned: nn.Module, rebuilt: nn.Module) -> None:
    """Copy what changed into every config object of the pruned model.

    In place, as modules hold on to them; some hold copies of their own (encoder and decoder).
    """
    done: set[int] = set()
    for path, module in rebuilt.named_modules():
        config = getattr(module, "config", None)
        own = getattr(pruned.get_submodule(path), "config", None)
        if own is not None and callable(getattr(config, "to_dict", None)):
            _copy_numbers(own, config, done)


def _copy_numbers(own: Any, config: Any, done: set[int]) -> None:
    if id(own) in done:
        return
    done.add(id(own))
    for key, value in config.to_dict().items():
        new, old = getattr(config, key, None), getattr(own, key, None)
        if callable(getattr(new, "to_dict", None)):
            _copy_numbers(old, new, done)
        elif old != new and any(_is_count(n) for _, n in _leaves(value)):
            setattr(own, key, new)
