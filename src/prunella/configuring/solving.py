"""Which numbers of a config give the pruned sizes: least squares in logarithms."""

import copy
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunella.configuring.blueprint import Blueprint, Key, Sizes
from prunella.configuring.numbers import Place, get, holders, is_count, leaves, put, spell

_TRIES = 24  # configs built at most; one is enough where shapes settle everything, as products
_SLACK = 0.02  # in powers of two: sizes that are rounded (`int(8 / 3 * n)`) do not grow exactly


@dataclass(frozen=True)
class Goal:
    """The sizes to reach. `hints`: attributes that did not change, or that nobody updated."""

    shapes: dict[Key, int]
    attributes: dict[Key, int]
    hints: dict[Key, int]


def goal_of(dense: Sizes, pruned: Sizes) -> Goal:
    """Say what a config has to give."""
    known = {key: n for key, n in pruned.attributes.items() if key in dense.attributes}
    changed = {key: n for key, n in known.items() if n != dense.attributes[key]}
    hints = {key: n for key, n in known.items() if key not in changed}
    return Goal(pruned.shapes, changed, hints)


def agrees(found: Sizes, goal: Goal) -> bool:
    """Say whether the sizes are those to reach."""
    attributes = {key: found.attributes.get(key) for key in goal.attributes}
    return found.shapes == goal.shapes and attributes == goal.attributes


def solve(
    blueprint: Blueprint, written: dict[str, Any], goal: Goal
) -> tuple[list[dict[str, Any]], str]:
    """Find values for a config's numbers that give the goal's sizes; or say what is in the way.

    Returns the likeliest first: shapes may leave something open (the number of heads).
    """
    places = [place for place, value in leaves(written) if is_count(value)]
    found: list[dict[str, Any]] = []
    reason = ""
    waiting, seen = [written], [written]
    while waiting:
        tried = waiting.pop(0)
        here = blueprint.sizes(tried)
        if here is None:
            reason = reason or f"its class does not take the sizes left ({blueprint.failure})"
        elif agrees(here, goal):
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
                    put(moved, place, max(1, round(get(tried, place) * 2.0**step)))
                if moved not in seen and len(seen) < _TRIES:
                    waiting.append(moved)
                    seen.append(moved)
    return found, reason or "no values of its config's numbers give the shapes that are left"


def _powers(
    blueprint: Blueprint, written: dict[str, Any], here: Sizes, places: Iterable[Place]
) -> dict[Place, dict[Key, float]]:
    """Say for each number of a config with which power each size grows with it.

    Numbers that change no size, or which tensors there are, are left out.
    """
    powers: dict[Place, dict[Key, float]] = {}
    before = {**here.attributes, **here.shapes}
    for place in places:
        doubled = copy.deepcopy(written)
        put(doubled, place, 2 * get(written, place))
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


def _rows(here: Sizes, goal: Goal, powers: Mapping[Place, Mapping[Key, float]]) -> list[_Row]:
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


def _conflict(rows: list[_Row], places: list[Place], here: Sizes, goal: Goal) -> str:
    """Say which two sizes must change differently though the config sets both alike."""
    alike: dict[tuple[float, ...], list[_Row]] = defaultdict(list)
    for row in rows:
        if not row.hint:
            alike[row.powers].append(row)
    wanted, now = ({**s.attributes, **s.shapes} for s in (goal, here))
    for powers, found in alike.items():
        found.sort(key=lambda row: row.change)
        numbers = [spell(place) for place, p in zip(places, powers, strict=True) if p]
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


def state(
    blueprint: Blueprint, written: dict[str, Any], dense: Sizes, goal: Goal
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
    for holder in holders(written):
        section = get(written, holder)
        absent = [name for name in by_name if name not in section]
        for name in [*(name for name, value in section.items() if value is None), *absent]:
            values = by_name.get(name) or (cut if name in section else set())
            for value in sorted(values - {0, 1}):
                stated, doubled = copy.deepcopy(written), copy.deepcopy(written)
                put(stated, (*holder, name), value)
                put(doubled, (*holder, name), 2 * value)
                same, other = blueprint.sizes(stated), blueprint.sizes(doubled)
                if same and other and same.shapes == dense.shapes:
                    written = stated if other.shapes != dense.shapes else written
                    break  # the value is the right one, or is not read at all
    return written


def derive(blueprint: Blueprint, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Update the numbers that a config works out from others (`pooler_output_size`)."""
    for holder in holders(before):
        for name, value in get(before, holder).items():
            place = (*holder, name)
            if is_count(value) and blueprint.without(before, place) == value:
                derived = blueprint.without(after, place)
                moved = copy.deepcopy(after)
                put(moved, place, derived)
                if derived and blueprint.sizes(moved) == blueprint.sizes(after):
                    after = moved
    return after


def _name(key: Key) -> str:
    owner, where = key
    return f"{owner}[{where}]" if isinstance(where, int) else f"{owner}.{where}"
