"""Find the channels that must be cut together, and what binds them."""

import fnmatch
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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
    """Components that own positions, each with its positions on all axes."""

    axes: tuple[Axis, ...]
    positions: dict[int, np.ndarray]  # component -> [n, 2] of (axis index, position), sorted


def _assemble(labels: Labels, components: np.ndarray) -> Groups:
    structural = _components(labels.structural, components)
    reasons = _reasons(labels, components)
    units = _collect(labels, components, structural)
    _freeze_bound_rows(labels, components, reasons)
    members: dict[tuple[bool, bytes], list[int]] = defaultdict(list)
    for component, positions in units.positions.items():
        members[component in reasons, positions[:, 0].tobytes()].append(component)
    alone = Frozen("all channels depend on one another", "couple", "")
    for (is_frozen, _), found in list(members.items()):
        if not is_frozen and len(found) == 1 and _fills_an_axis(labels, units, found[0]):
            reasons[found[0]] = {alone: None}
    by_number: dict[int, int] = {}
    names: dict[str, int] = {}
    sorted_out: dict[bool, list[Group]] = {False: [], True: []}
    ordered = sorted(members.values(), key=lambda found: found[0] in reasons)
    for found in ordered:
        group = _group(units, found, reasons, names, len(by_number))
        by_number.update({c: group.start + i for i, c in enumerate(found)})
        sorted_out[bool(group.frozen)].append(group)
    number = np.full(components.max(initial=-1) + 1, -1)
    number[list(by_number)] = list(by_number.values())
    numbers = number[components]  # by label; -1 for what is on no axis
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
        axes={
            axis: numbers[found.numpy()]
            for axis, found in labels.axes.items()
            if (numbers[found.numpy()] >= 0).all()
        },
        marked=tuple(labels.marked),
    )


def _fills_an_axis(labels: Labels, units: _Units, component: int) -> bool:
    """Say whether cutting this unit would leave nothing of some axis."""
    index, count = np.unique(units.positions[component][:, 0], return_counts=True)
    return any(labels.axes[units.axes[i]].numel() == n for i, n in zip(index, count, strict=True))


def _components(found: Sequence[torch.Tensor], components: np.ndarray) -> set[int]:
    return set(np.unique(components[torch.cat(list(found)).numpy()]).tolist()) if found else set()


def _reasons(labels: Labels, components: np.ndarray) -> dict[int, dict[Frozen, None]]:
    reasons: dict[int, dict[Frozen, None]] = defaultdict(dict)
    for found, frozen in labels.frozen:
        for component in np.unique(components[found.numpy()]).tolist():
            if len(reasons[component]) < _REASONS:
                reasons[component][frozen] = None
    return reasons


def _collect(labels: Labels, components: np.ndarray, structural: set[int]) -> _Units:
    axes = tuple(labels.axes)
    owners = [components[labels.axes[axis].reshape(-1).numpy()] for axis in axes]
    if not owners:
        return _Units(axes, {})
    owner = np.concatenate(owners)
    place = np.concatenate(
        [np.stack([np.full(len(o), i), np.arange(len(o))], 1) for i, o in enumerate(owners)]
    )
    order = np.argsort(owner, kind="stable")
    found, starts = np.unique(owner[order], return_index=True)
    pieces = np.split(place[order], starts[1:])
    positions = {int(c): p for c, p in zip(found, pieces, strict=True) if int(c) not in structural}
    by_place = sorted(positions.items(), key=lambda item: tuple(item[1][0]))
    return _Units(axes, dict(by_place))


def _freeze_bound_rows(
    labels: Labels, components: np.ndarray, reasons: dict[int, dict[Frozen, None]]
) -> None:
    """Where one of several rows that keep equally many is frozen, so are the others."""
    changed = True
    while changed:
        changed = False
        for rows in labels.rows:
            found = components[rows.labels.numpy()]
            if _is_free(found, moved=rows.moved):
                continue
            stuck = np.isin(found, list(reasons)).all(1)
            loose = {int(c) for c in np.unique(found)} - set(reasons)
            if found.shape[1] == 1 or (stuck.any() and loose):
                why = Frozen(f"keeps as many as frozen channels at {rows.where}", "couple", "")
                for component in loose:
                    reasons[component] = {why: None}
                changed = changed or bool(loose)


def _is_free(found: np.ndarray, *, moved: bool) -> bool:
    """Say whether rows keep equally many whatever is cut, or go as a whole."""
    whole = moved and bool((found == found[:, :1]).all())
    ordered = np.sort(found, 1)
    return whole or bool((ordered == ordered[:1]).all())


def _group(
    units: _Units,
    found: list[int],
    reasons: dict[int, dict[Frozen, None]],
    names: dict[str, int],
    start: int,
) -> Group:
    places = np.stack([units.positions[c] for c in found])  # [channels, slices, 2]
    axes = {units.axes[i]: places[:, places[0, :, 0] == i, 1] for i in np.unique(places[0, :, 0])}
    why: dict[Frozen, None] = {}
    for component in found:
        why.update(reasons.get(component, {}))
    return Group(
        name=_name(next(iter(axes)), names),
        channels=len(found),
        start=start,
        axes=axes,
        frozen=tuple(why)[:_REASONS],
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
