"""Find the channels that must be cut together, and what binds them."""

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, get_args

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.jit import ScriptModule

from prunella import rules
from prunella.coupling.sizing import bind_sizes
from prunella.coupling.unread import unread
from prunella.errors import ConfigError
from prunella.graph import Graph, refs
from prunella.labels import Labels, Product, Shape
from prunella.labels.ragged import Ragged, ranges, sorted_by
from prunella.model.structure import prefixes
from prunella.plan import (
    Axis,
    Blocks,
    Follower,
    Form,
    Frozen,
    Group,
    Groups,
    Heads,
    MacTerm,
    check_kind,
    nearest,
)
from prunella.tracing.unseen import at_hand

Exclude = str | re.Pattern[str] | type[nn.Module]

_EXPRESSION = "re:"  # begins an entry of `exclude` that is a regular expression in text
_REASONS = 3  # how many different reasons a frozen group lists


def couple(
    graph: Graph,
    exclude: Exclude | Iterable[Exclude] = (),
    form: Form = "class",
    heads: Heads = "whole",
) -> Groups:
    """Find the groups of coupled channels of a network.

    Args:
        graph: A captured network.
        exclude: Modules whose channels, on every side, must stay: qualified names ("layer1.0"),
            globs ("layer1.*"), regular expressions, compiled or in text ("re:.*down.*"), or module
            classes; one or several.
        form: "class": only what the model's own code allows, so that the user's class comes back.
            "graph": sizes that the code spells out do not bind; the pruned model is the captured
            graph, rewritten.
        heads: "whole": attention loses whole heads. "inside": all heads stay, and each loses
            equally many of its positions, of its own choice; queries and keys lose the same ones,
            values and the columns that read them others.

    Returns:
        The groups that may be cut, and those that may not with the reasons.

    Raises:
        ConfigError: An entry of `exclude` is bad or matches nothing, or `form` or `heads` is none
            of those.
    """
    check_kind(graph, Graph)
    for name, value, known in (("form", form, get_args(Form)), ("heads", heads, get_args(Heads))):
        if value not in known:
            raise ConfigError(f"`{name}` is {' or '.join(map(repr, known))}, got {value!r}")
    labels = propagate(graph, {name: value.shape for name, value in graph.values.items()}, heads)
    _exclude(labels, exclude)
    _hold_scripted(labels)
    if graph.recorded:
        _hold_statistics(labels)
    components = close(labels)
    code_binds = bind_sizes(labels, components, form)
    groups = _assemble(labels, components)
    return replace(groups, form=form, code_binds=code_binds, heads=heads)


def _hold_statistics(labels: Labels) -> None:
    """Freeze what a recorded run takes statistics over, but in norm modules.

    Such a run cannot be repeated with other statistics, so nothing could be proven.
    """
    for node in labels.graph.nodes:
        kind = labels.graph.modules.get(node.module, object)
        if node.name in labels.marked and not issubclass(kind, NORMS):
            labels.marked.remove(node.name)
            for ref in refs(node.args):
                for layer in labels.layers.get(ref.name, ()):
                    labels.freeze(layer, "statistics of a recorded run", node)


NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""Modules whose statistics the certificate can take over the kept channels in a recorded run."""


def propagate(graph: Graph, shapes: dict[str, Shape], heads: Heads) -> Labels:
    """Send labels through the whole network once."""
    labels = Labels(graph, shapes, inside=heads == "inside")
    for node in graph.nodes:
        rules.apply(labels, node)
    for name in graph.outputs:
        for layer in labels.layers.get(name, ()):
            reason = f"reaches the output `{name}`"
            labels.frozen.append((layer.reshape(-1), Frozen(reason, "output", "")))
    for name, module in at_hand(graph).items():
        for layer in labels.layers.get(name, ()):
            reason = f"may be used by `{module}`, which the recorded run did not reach"
            labels.frozen.append((layer.reshape(-1), Frozen(reason, "capture", module)))
    return labels


def close(labels: Labels) -> np.ndarray:
    """Number the connected components of the labels: `[labels]` -> component."""
    nothing = torch.empty(0, dtype=torch.int64)
    left = torch.cat([nothing, *(a for a, _ in labels.edges)]).numpy()
    right = torch.cat([nothing, *(b for _, b in labels.edges)]).numpy()
    edges = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(labels.count,) * 2)
    _, components = connected_components(edges, directed=False)
    return np.asarray(components)


def _exclude(labels: Labels, exclude: Exclude | Iterable[Exclude]) -> None:
    modules = labels.graph.modules
    for entry in listed(exclude):
        read = _read(entry)
        matched = {name for name, kind in modules.items() if name and _matches(read, name, kind)}
        named = {axis.tensor for axis in labels.axes}
        direct = {name for name in named if _matches(read, name, None)}
        if not matched and not direct:
            hint = nearest(read, modules) if isinstance(read, str) else ""
            raise ConfigError(f"`exclude` entry {entry!r} matches no module or parameter{hint}")
        for axis, found in labels.axes.items():
            owners = prefixes(axis.tensor)
            if axis.tensor in direct or matched.intersection(owners):
                reason = Frozen(f"excluded by {entry!r}", "exclude", axis.tensor)
                labels.frozen.append((found.reshape(-1), reason))


def _hold_scripted(labels: Labels) -> None:
    """Keep what TorchScript owns: its tensors and its code are out of reach."""
    modules = labels.graph.modules
    for axis, found in labels.axes.items():
        owners = ("", *prefixes(axis.tensor))
        scripted = [name for name in owners if issubclass(modules.get(name, object), ScriptModule)]
        if scripted:
            reason = Frozen("belongs to a TorchScript module", "couple", scripted[0])
            labels.frozen.append((found.reshape(-1), reason))


def listed(exclude: Exclude | Iterable[Exclude]) -> tuple[Exclude, ...]:
    """Return what to exclude as a tuple; a lone string is one entry, not its letters."""
    if isinstance(exclude, str | re.Pattern | type):
        return (exclude,)
    if not isinstance(exclude, Iterable):
        raise _no_entry(exclude)
    return tuple(exclude)


def _read(entry: Exclude) -> Exclude:
    if not isinstance(entry, str) or not entry.startswith(_EXPRESSION):
        return entry
    try:
        return re.compile(entry.removeprefix(_EXPRESSION))
    except re.error as cause:
        raise ConfigError(f"`exclude` entry {entry!r} is no regular expression: {cause}") from cause


def _matches(entry: Exclude, name: str, kind: type | None) -> bool:
    if isinstance(entry, str):
        return name == entry or fnmatch.fnmatchcase(name, entry)
    if isinstance(entry, re.Pattern):
        return entry.fullmatch(name) is not None
    if isinstance(entry, type):
        return kind is not None and issubclass(kind, entry)
    raise _no_entry(entry)


def _no_entry(given: object) -> ConfigError:
    return ConfigError(
        f"`exclude` takes names, globs, regular expressions or classes, got {given!r}"
    )


@dataclass(frozen=True, eq=False)
class Units:
    """Components that own positions on axes, in the order of their first positions.

    `axis` and `position` have a row for each: the indices of the axes, and the positions on them.
    """

    components: np.ndarray
    axis: Ragged
    position: Ragged


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
        indices = self._by_component.take(components).values
        _, first = np.unique(indices, return_index=True)
        why = dict.fromkeys(self._why[indices[i]] for i in np.sort(first))
        return tuple(why)[:_REASONS]

    @cached_property
    def _by_component(self) -> Ragged:
        """Return the indices of every component's reasons."""
        found = np.concatenate([np.empty(0, dtype=np.int64), *self._found])
        index = np.repeat(np.arange(len(self._found)), [len(f) for f in self._found])
        return sorted_by(found, index, len(self.stuck))


def _assemble(labels: Labels, components: np.ndarray) -> Groups:
    axes = tuple(labels.axes)
    reasons = _Reasons(labels, components)
    units = _without(collect(labels.axes.values(), components), labels.structural, components)
    idle = np.flatnonzero(unread(labels, components) & ~reasons.stuck)
    reasons.add(
        idle, Frozen("nothing reads it with these inputs; with others something may", "couple", "")
    )
    _freeze_bound_rows(labels, components, reasons)
    members = units.axis.alike(reasons.stuck[units.components])
    alone = Frozen("all channels depend on one another", "couple", "")
    for found in members:
        component = units.components[found]
        single = len(found) == 1 and not reasons.stuck[component[0]]
        if single and _fills_an_axis(labels, units.axis.row(found[0])):
            reasons.add(component, alone)
    number = np.full(len(reasons.stuck), -1)
    names: dict[str, int] = {}
    sorted_out: dict[bool, list[Group]] = {False: [], True: []}
    start = 0
    for found in sorted(members, key=lambda found: bool(reasons.stuck[units.components[found[0]]])):
        on_axes = {axes[i]: places for i, places in _places(units, found).items()}
        why = reasons.of(units.components[found])
        name = _name(next(iter(on_axes)), names)
        sorted_out[bool(why)].append(Group(name, len(found), start, on_axes, why))
        number[units.components[found]] = np.arange(start, start + len(found))
        start += len(found)
    numbers = number[components]  # by label; -1 for what is on no axis
    all_axes = {axis: numbers[found.numpy()] for axis, found in labels.axes.items()}
    return Groups(
        graph=labels.graph,
        prunable=tuple(sorted_out[False]),
        frozen=tuple(sorted_out[True]),
        blocks=tuple(_blocks(labels, numbers)),
        terms=tuple(_term(product, numbers) for product in labels.products),
        followers=tuple(
            Follower(f.module, f.attribute, numbers[f.heads.numpy()], f.per)
            for f in labels.followed
        ),
        axes={axis: found for axis, found in all_axes.items() if (found >= 0).all()},
        marked=tuple(labels.marked),
    )


def collect(axes: Iterable[Tensor], components: np.ndarray) -> Units:
    """List what every component has on the axes, given by their labels."""
    owners = [components[found.reshape(-1).numpy()] for found in axes]
    owner = np.concatenate([np.empty(0, dtype=components.dtype), *owners])
    sizes = np.array([len(found) for found in owners], dtype=np.int64)
    places = sorted_by(owner, np.arange(len(owner)), components.max(initial=-1) + 1)
    found = np.flatnonzero(places.sizes)
    found = found[np.argsort(places.values[places.starts[found]])]
    places = places.take(found)
    axis = np.repeat(np.arange(len(sizes)), sizes)[places.values]
    position = ranges(np.zeros_like(sizes), sizes)[places.values]
    return Units(
        found,
        Ragged(axis, places.starts, places.sizes),
        Ragged(position, places.starts, places.sizes),
    )


def _without(units: Units, labels: Iterable[Tensor], components: np.ndarray) -> Units:
    """Leave out the units that hold any of some labels."""
    out = np.zeros(components.max(initial=-1) + 1, dtype=bool)
    for found in labels:
        out[components[found.numpy()]] = True
    left = np.flatnonzero(~out[units.components])
    return Units(units.components[left], units.axis.take(left), units.position.take(left))


def _places(units: Units, found: np.ndarray) -> dict[int, np.ndarray]:
    """Return the positions of like units on each axis (its index), `[units, slices]`."""
    axis = units.axis.row(found[0])
    position = units.position.take(found).values.reshape(len(found), -1)
    return {int(i): position[:, axis == i] for i in np.unique(axis)}


def _fills_an_axis(labels: Labels, axis: np.ndarray) -> bool:
    """Say whether cutting a unit, given the axes it is on, would leave nothing of some axis."""
    sizes = [found.numel() for found in labels.axes.values()]
    index, count = np.unique(axis, return_counts=True)
    return any(sizes[i] == n for i, n in zip(index, count, strict=True))


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


def _term(product: Product, numbers: np.ndarray) -> MacTerm:
    """Fold the dimensions that never change into the factor."""
    factor, changing = product.factor, []
    dims = [numbers[found.numpy()] for found in product.dims]
    for dim in dims:
        if (dim < 0).all():
            factor *= len(dim)
        else:
            changing.append(dim)
    sums = product.sums and bool((dims[-1] >= 0).any())
    return MacTerm(product.node, product.module, factor, tuple(changing), sums)
