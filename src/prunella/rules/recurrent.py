"""Recurrent layers: a hidden unit is one row of every gate, and one column of what reads it.

The weights of a layer are `[gates * hidden, input]` and `[gates * hidden, hidden]`, with a
projection `[projected, hidden]` in between where the layer has one. All layers and directions of a
module have the same number of units, since their states are one tensor; which ones may differ.
"""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from prunella.graph import Node, Ref
from prunella.labels import Labels, Layer, Layers, Operand, narrow_to, spread, varies
from prunella.rules._registry import rule
from prunella.rules.creation import FILLS

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
_COPIES = {"expand", "view", "reshape", "to", "_to_copy", "contiguous", "clone", "detach", "alias"}
_RUNS = "runs through a recurrent layer"


@dataclass(frozen=True)
class _Cell:
    """The weights of one layer in one direction."""

    ih: Ref
    hh: Ref
    biases: tuple[Ref, ...]
    projection: Ref | None = None


@dataclass(frozen=True, eq=False)
class _Units:
    """Labels of a cell's units, and of what it hands on: the same where nothing is projected."""

    inside: Tensor
    given: Tensor


@rule(*(f"aten.{kind}.{given}" for kind in _GATES for given in ("input", "data")))
def recurrent(labels: Labels, node: Node) -> list[Layers]:
    """Run all layers over a sequence."""
    first = 2 if node.op.endswith(".data") else 1  # packed: the sizes of the batches come before
    x, states, weights, has_biases, layers = (node.args[0], *node.args[first : first + 4])
    ways = 2 if node.args[first + 6] else 1
    last = len(labels.shape(x)) - 1
    found = _cells(weights, layers * ways, has_biases=has_biases)
    inputs = _inputs(labels, node, x)
    made: list[_Units] = []
    for layer in range(layers):
        cells = found[layer * ways : (layer + 1) * ways]
        made += [_run(labels, node, cell, inputs, prod(labels.shape(x)[:-1])) for cell in cells]
        inputs = torch.cat([units.given for units in made[-ways:]])
    assert isinstance(inputs, Tensor), "there is at least one layer"
    states = states if isinstance(states, tuple) else (states,)
    rows = [[units.given for units in made], [units.inside for units in made]]
    carried = [_carry(labels, node, ref, r) for ref, r in zip(states, rows, strict=False)]
    return [(spread(inputs, last, last + 1),), *carried]


@rule(*(f"aten.{kind}_cell.default" for kind in _GATES))
def step(labels: Labels, node: Node) -> Layers | list[Layers]:
    """Run one cell for one step."""
    x, states, ih, hh, *biases = node.args
    cell = _Cell(ih, hh, tuple(ref for ref in biases if isinstance(ref, Ref)))
    steps = prod(labels.shape(x)[:-1])
    units = _run(labels, node, cell, _inputs(labels, node, x), steps).given
    found = states if isinstance(states, tuple) else (states,)
    made: list[Layers] = []
    for ref in found:
        shape = labels.shape(ref)
        own = (spread(units, len(shape) - 1, len(shape)),)
        wide = (1,) * (len(shape) - 1) + shape[-1:]
        met = labels.meet(wide, [Operand(own, wide), _last(labels, node, ref, None)], node)
        made.append(met)
    return made if isinstance(states, tuple) else made[0]


def _cells(weights: tuple[Ref, ...], count: int, *, has_biases: bool) -> list[_Cell]:
    """Sort the weights of all layers and directions: `ih, hh, (two biases), (projection)`."""
    size = len(weights) // count
    made = []
    for i in range(count):
        ih, hh, *rest = weights[i * size : (i + 1) * size]
        biases = tuple(rest[:2]) if has_biases else ()
        made.append(_Cell(ih, hh, biases, rest[-1] if size % 2 else None))
    return made


def _inputs(labels: Labels, node: Node, x: Ref) -> Tensor | int:
    shape = labels.shape(x)
    outer = range(len(shape) - 1)
    for layer in labels.pass_through(labels.of(x), outer, _RUNS, node):
        return layer.reshape(-1)
    return shape[-1]


def _run(labels: Labels, node: Node, cell: _Cell, inputs: Tensor | int, steps: int) -> _Units:
    """Couple one cell: every gate has a row for each unit."""
    gates = _GATES[node.op.split(".")[1].removesuffix("_cell")]
    rows = [_along(labels, ref, 0, node) for ref in (cell.ih, cell.hh, *cell.biases)]
    units = rows[0][: len(rows[0]) // gates]
    for labels_of_rows in rows:
        labels.unite(labels_of_rows.reshape(gates, -1), units)
    columns, back = _along(labels, cell.ih, 1, node), _along(labels, cell.hh, 1, node)
    if isinstance(inputs, Tensor):
        labels.unite(columns, inputs)
    else:
        labels.freeze(columns, "is multiplied with a plain extent", node)
    labels.multiply(node, steps, [rows[0], columns])
    labels.multiply(node, steps, [rows[1], back])
    given = units
    if cell.projection is not None:
        given = _along(labels, cell.projection, 0, node)
        labels.unite(_along(labels, cell.projection, 1, node), units)
        labels.multiply(node, steps, [given, units])
    labels.unite(back, given)
    return _Units(units, given)


def _along(labels: Labels, ref: Ref, dim: int, node: Node) -> Tensor:
    """Return the labels along a weight's dimension; of a plain one, labels that may not be cut."""
    found = labels.labels_along(ref, dim)
    if isinstance(found, int):
        found = labels.fresh(found)
        labels.freeze(found, "meets a side of a computed weight that cannot be cut", node)
    return found


def _carry(labels: Labels, node: Node, state: Ref, rows: list[Tensor]) -> Layers:
    """Couple the states before, `[layers, ..., units]`; return the layers of those after.

    States that start at a constant are the same for all layers, whichever units these keep.
    """
    shape = labels.shape(state)
    stacked = torch.stack(rows)
    if len(rows) > 1:
        labels.equal_rows(stacked, node, moved=False)
    wide = (1,) * (len(shape) - 1) + shape[-1:]
    for i, row in enumerate(rows[:1] if _is_constant(labels, state) else rows):
        own = Operand((spread(row, len(shape) - 1, len(shape)),), wide)
        labels.meet(wide, [own, _last(labels, node, state, i)], node)
    made = stacked.reshape(len(rows), *(1,) * (len(shape) - 2), -1)
    return (made,) if shape[-1] > 1 else ()


def _last(labels: Labels, node: Node, state: Ref, layer: int | None) -> Operand:
    """Return what the units of a state carry: of one layer, if it has several."""
    shape = labels.shape(state)
    last = len(shape) - 1
    picked = [_picked(found, layer) for found in labels.of(state)]
    outer = range(last)
    layers = labels.pass_through(tuple(a for a in picked if varies(a, last)), outer, _RUNS, node)
    return Operand(layers, (1,) * last + shape[-1:])


def _picked(found: Layer, layer: int | None) -> Layer:
    if layer is None or not varies(found, 0):
        return found
    return found.narrow(0, layer, 1) if found.ndim > 1 else narrow_to(found, set())


def _is_constant(labels: Labels, ref: Ref) -> bool:
    """Say whether a tensor holds the same number everywhere."""
    makers = {name: node for node in labels.graph.nodes for name in node.outputs}
    while (node := makers.get(ref.name)) is not None:
        if node.op in FILLS:
            return not node.op.startswith("aten.empty")
        if node.op.split(".")[1] not in _COPIES:
            return False
        ref = node.args[0]
    return False


@rule("aten._pack_padded_sequence.default", "aten._pad_packed_sequence.default")
def pack(labels: Labels, node: Node) -> list[Layers]:
    """Lay sequences of several lengths out as rows, or back; what is in a row passes."""
    x = node.args[0]
    packs = node.op == "aten._pack_padded_sequence.default"
    outer = range(2 if packs else 1)
    kept = labels.pass_through(labels.of(x), outer, "is packed by length", node)
    return [tuple(a.squeeze(0) if packs else a.unsqueeze(0) for a in kept), ()]
