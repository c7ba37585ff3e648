"""Find the channels that must be cut together, and what binds them."""

import fnmatch
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import nn

from prunella import rules
from prunella.errors import ConfigError
from prunella.graph import Graph
from prunella.labels import Labels, Shape
from prunella.plan import (
    Axis,
    Blocks,
    Follower,
    Form,
    Frozen,
    Group,
    Groups,
    MacTerm,
    nearest,
)
from prunella.sizing import bind_sizes

Exclude = str | re.Pattern[str] | type[nn.Module]

_REASONS = 3  # how many different reasons a frozen group lists


def couple(graph: Graph, exclude: Iterable[Exclude] = (), form: Form = "class") -> Groups:
    """Find the groups of coupled channels of a network.

    Args:
        graph: A captured network.
        exclude: Modules whose channels, on every side, must stay: qualified names ("layer1.0"),
            globs ("layer1.*"), compiled regular expressions, or module classes.
        form: "class": only what the model's own code allows, so that the user's class comes back.
            "graph": sizes that the code spells out do not bind; the pruned model is the captured
            graph, rewritten.

    Returns:
        The groups that may be cut, and those that may not with the reasons.

    Raises:
        ConfigError: An entry of `exclude` matches nothing.
    """
    labels = propagate(graph, {name: value.shape for name, value in graph.values.items()})
    _exclude(labels, exclude)
    components = close(labels)
    code_binds = bind_sizes(labels, components, form)
    return replace(_assemble(labels, components), form=form, code_binds=code_binds)


def propagate(graph: Graph, shapes: dict[str, Shape]) -> Labels:
    """Send labels through the whole network once."""
    labels = Labels(graph, shapes)
    for node in graph.nodes:
        rules.apply(labels, node)
    for name in graph.outputs:
        for layer in labels.layers.get(name, ()):
            reason = f"reaches the output `{name}`"
            labels.frozen.append((layer.reshape(-1), Frozen(reason, "output", "")))
    return labels


def close(labels: Labels) -> np.ndarray:
    """Number the connected components of the labels: `[labels]` -> component."""
    nothing = torch.empty(0, dtype=torch.int64)
    left = torch.cat([nothing, *(a for a, _ in labels.edges)]).numpy()
    right = torch.cat([nothing, *(b for _, b in labels.edges)]).numpy()
    edges = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(labels.count,) * 2)
    _, components = connected_components(edges, directed=False)
    return np.asarray(components)


def _exclude(labels: Labels, exclude: Iterable[Exclude]) -> None:
    modules = labels.graph.modules
    for entry in exclude:
        matched = {name for name, kind in modules.items() if name and _matches(entry, name, kind)}
        named = {axis.tensor for axis in labels.axes}
        direct = {name for name in named if _matches(entry, name, None)}
        if not matched and not direct:
            hint = nearest(entry, modules) if isinstance(entry, str) else ""
            raise ConfigError(f"`exclude` entry {entry!r} matches no module or parameter{hint}")
        for axis, found in labels.axes.items():
            owners = _prefixes(axis.tensor)
            if axis.tensor in direct or owners & matched:
                reason = Frozen(f"excluded by {entry!r}", "exclude", axis.tensor)
                labels.frozen.append((found.reshape(-1), reason))


def _matches(entry: Exclude, name: str, kind: type | None) -> bool:
    if isinstance(entry, str):
        return name == entry or fnmatch.fnmatchcase(name, entry)
    if isinstance(entry, re.Pattern):
        return entry.fullmatch(name) is not None
    if isinstance(entry, type):
        return kind is not None and issubclass(kind, entry)
    raise ConfigError(
        f"`exclude` takes names, globs, compiled regular expressions or classes, got {entry!r}"
    )


def _prefixes(name: str) -> set[str]:
    """("a.b.weight") -> {"a", "a.b"}."""
    parts = name.split(".")
    return {".".join(parts[:i]) for i in range(1, len(parts))}


@dataclass(frozen=True, eq=False)
class _Units:
    """Components that own positions, in the order of their first positions.

    Unit `u` is `components[u]`; its positions on all axes, in order, are the `sizes[u]` entries of
    `axis` (index of the axis) and `position` from `starts[u]` on.
    """

    axes: tuple[Axis, ...]
    components: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    axis: np.ndarray
    position: np.ndarray

    def signature(self, unit: int) -> np.ndarray:
        """Return the axis of every position of a unit."""
        start = self.starts[unit]
        return np.asarray(self.axis[start : start + self.sizes[unit]])


class _Reasons:
    """Which components may not be cut, and why."""

    def __init__(self, labels: Labels, components: np.ndarray) -> None:
        self.stuck = np.zeros(components.max(initial=-1) + 1, dtype=bool)
        self._found: list[np.ndarray] = []
        self._why: list[Frozen] = []
        for found, why in labels.frozen:
            self.add(components[found.numpy()], why)

    def add(self, components: np.ndarray, why: Frozen) -> None:
        """Freeze components."""
        self.stuck[components] = True
        self._found.append(components)
        self._why.append(why)

    def of(self, components: np.ndarray) -> tuple[Frozen, ...]:
        """List a few different reasons why any of the components is frozen, in their order."""
        order, starts, sizes = self._by_component
        rows = order[_ranges(starts[components], sizes[components])]
        _, first = np.unique(rows, return_index=True)
        why = dict.fromkeys(self._why[rows[i]] for i in np.sort(first))
        return tuple(why)[:_REASONS]

    @cached_property
    def _by_component(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the reasons' indices sorted by component, where each one's start, and how many."""
        found = np.concatenate([np.empty(0, dtype=np.int64), *self._found])
        order = np.repeat(np.arange(len(self._found)), [len(f) for f in self._found])
        sizes = np.bincount(found, minlength=len(self.stuck))
        return order[np.argsort(found, kind="stable")], np.cumsum(sizes) - sizes, sizes


def _ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Join the ranges that begin at `starts`: ([5, 0], [2, 3]) -> [5, 6, 0, 1, 2]."""
    before = np.cumsum(sizes) - sizes
    return np.asarray(np.repeat(starts - before, sizes) + np.arange(sizes.sum()))


def _assemble(labels: Labels, components: np.ndarray) -> Groups:
    reasons = _Reasons(labels, components)
    units = _collect(labels, components)
    _freeze_bound_rows(labels, components, reasons)
    members = _alike(units, reasons.stuck)
    alone = Frozen("all channels depend on one another", "couple", "")
    for found in members:
        component = units.components[found[:1]]
        if (
            len(found) == 1
            and not reasons.stuck[component]
            and _fills_an_axis(labels, units, found[0])
        ):
            reasons.add(component, alone)
    number = np.full(len(reasons.stuck), -1)
    names: dict[str, int] = {}
    sorted_out: dict[bool, list[Group]] = {False: [], True: []}
    start = 0
    for found in sorted(members, key=lambda found: bool(reasons.stuck[units.components[found[0]]])):
        group = _group(units, found, reasons, names, start)
        number[units.components[found]] = np.arange(start, start + len(found))
        start += len(found)
        sorted_out[bool(group.frozen)].append(group)
    numbers = number[components]  # by label; -1 for what is on no axis
    on_axes = {axis: numbers[found.numpy()] for axis, found in labels.axes.items()}
    return Groups(
        graph=labels.graph,
        prunable=tuple(sorted_out[False]),
        frozen=tuple(sorted_out[True]),
        blocks=tuple(_blocks(labels, numbers)),
        terms=tuple(
            MacTerm(p.node, p.module, *_product(p.factor, [numbers[d.numpy()] for d in p.dims]))
            for p in labels.products
        ),
        followers=tuple(
            Follower(f.module, f.attribute, numbers[f.heads.numpy()], f.per)
            for f in labels.followed
        ),
        axes={axis: found for axis, found in on_axes.items() if (found >= 0).all()},
        marked=tuple(labels.marked),
    )


def _fills_an_axis(labels: Labels, units: _Units, unit: int) -> bool:
    """Say whether cutting this unit would leave nothing of some axis."""
    index, count = np.unique(units.signature(unit), return_counts=True)
    return any(labels.axes[units.axes[i]].numel() == n for i, n in zip(index, count, strict=True))


def _collect(labels: Labels, components: np.ndarray) -> _Units:
    """List what every component has on the axes, but for what no axis may lose."""
    axes = tuple(labels.axes)
    owners = [components[labels.axes[axis].reshape(-1).numpy()] for axis in axes]
    owner = np.concatenate([np.empty(0, dtype=components.dtype), *owners])
    lengths = [len(o) for o in owners]
    axis = np.repeat(np.arange(len(axes)), lengths)
    position = _ranges(np.zeros(len(axes), dtype=np.int64), np.array(lengths, dtype=np.int64))
    by_owner = np.argsort(owner, kind="stable")
    found, starts, sizes = np.unique(owner[by_owner], return_index=True, return_counts=True)
    structural = np.zeros(components.max(initial=-1) + 1, dtype=bool)
    for fixed in labels.structural:
        structural[components[fixed.numpy()]] = True
    order = np.argsort(by_owner[starts])
    order = order[~structural[found[order]]]
    places = by_owner[_ranges(starts[order], sizes[order])]
    sizes = sizes[order]
    return _Units(
        axes, found[order], np.cumsum(sizes) - sizes, sizes, axis[places], position[places]
    )


def _alike(units: _Units, stuck: np.ndarray) -> list[np.ndarray]:
    """Sort the units: those on the same axes, and equally frozen, are together."""
    n = len(units.components)
    if not n:
        return []
    # Neighbours are mostly alike, so only where the next one differs is it looked at one by one.
    frozen = stuck[units.components]
    differs = np.ones(n, dtype=bool)
    same_size = np.flatnonzero(units.sizes[1:] == units.sizes[:-1]) + 1
    mine = _ranges(units.starts[same_size], units.sizes[same_size])
    others = _ranges(units.starts[same_size - 1], units.sizes[same_size])
    at = np.cumsum(units.sizes[same_size]) - units.sizes[same_size]
    if len(same_size):
        unequal = np.logical_or.reduceat(units.axis[mine] != units.axis[others], at)
        differs[same_size] = unequal | (frozen[same_size] != frozen[same_size - 1])
    heads = np.flatnonzero(differs)
    members: dict[tuple[bool, bytes], list[np.ndarray]] = defaultdict(list)
    for head, end in zip(heads.tolist(), [*heads[1:].tolist(), n], strict=True):
        key = bool(frozen[head]), units.signature(head).tobytes()
        members[key].append(np.arange(head, end))
    return [np.concatenate(found) for found in members.values()]


def _freeze_bound_rows(labels: Labels, components: np.ndarray, reasons: _Reasons) -> None:
    """Where one of several rows that keep equally many is frozen, so are the others."""
    bound = [(rows.where, components[rows.labels.numpy()], rows.moved) for rows in labels.rows]
    waiting = [(where, found) for where, found, moved in bound if not _is_free(found, moved=moved)]
    changed = True
    while changed:
        changed = False
        for where, found in waiting:
            frozen = reasons.stuck[found]
            if frozen.all() or not (found.shape[1] == 1 or frozen.all(1).any()):
                continue
            why = Frozen(f"keeps as many as frozen channels at {where}", "couple", "")
            reasons.add(found[~frozen], why)
            changed = True


def _is_free(found: np.ndarray, *, moved: bool) -> bool:
    """Say whether rows keep equally many whatever is cut, or go as a whole."""
    whole = moved and bool((found == found[:, :1]).all())
    ordered = np.sort(found, 1)
    return whole or bool((ordered == ordered[:1]).all())


def _group(
    units: _Units, found: np.ndarray, reasons: _Reasons, names: dict[str, int], start: int
) -> Group:
    signature = units.signature(found[0])
    places = units.position[units.starts[found][:, None] + np.arange(len(signature))]
    axes = {units.axes[i]: places[:, signature == i] for i in np.unique(signature)}
    return Group(
        name=_name(next(iter(axes)), names),
        channels=len(found),
        start=start,
        axes=axes,
        frozen=reasons.of(units.components[found]),
    )


def _name(axis: Axis, names: dict[str, int]) -> str:
    """Name a group after the first tensor that has it: "conv1", "conv1[1]", "conv1#2"."""
    module = axis.tensor.removesuffix(".weight")
    name = module if axis.dim == 0 else f"{module}[{axis.dim}]"
    names[name] = names.get(name, 0) + 1
    return name if names[name] == 1 else f"{name}#{names[name]}"


def _blocks(labels: Labels, number: np.ndarray) -> Iterable[Blocks]:
    """Return the constraints that bind, each once: moved, if any of the same is."""
    found: dict[Any, Blocks] = {}
    for index, rows in enumerate(labels.rows):
        numbers = number[rows.labels.numpy()]
        key = (numbers.shape, numbers.tobytes())
        if not _is_free(numbers, moved=rows.moved) and not (key in found and found[key].moved):
            found[key] = Blocks(numbers, rows.where, rows.moved, index, rows.tie)
    return found.values()


def _product(factor: int, dims: list[np.ndarray]) -> tuple[int, tuple[np.ndarray, ...]]:
    """Fold the dimensions that never change into the factor."""
    changing = []
    for dim in dims:
        if (dim < 0).all():
            factor *= len(dim)
        else:
            changing.append(dim)
    return factor, tuple(changing)
