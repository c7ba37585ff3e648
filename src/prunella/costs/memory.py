"""How much memory activations need at the worst moment of a forward pass.

A tensor lives from the node that makes it to the last node that reads it; inputs live from the
start, outputs to the end. Views, and what is written in place, share the memory of what they show.
The figure is that of one sample, without what an operator needs for itself while it runs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from torch import nn

from prunella.costs.predicted import Term
from prunella.coupling.resizing import Flow
from prunella.graph import Graph, Node, refs
from prunella.labels.extents import shorter_dim
from prunella.tracing import Inputs, trace
from prunella.tracing.operators import operator_of


@dataclass(frozen=True, eq=False)
class Live:
    """Which memory is in use while each node runs.

    `values` names the tensors that own memory; `at` has a row for each node: bool,
    `[nodes, values]`.
    """

    values: tuple[str, ...]
    at: np.ndarray


def live(graph: Graph) -> Live:
    """Follow every tensor of a network from where it is made to its last use."""
    nodes = [node for node in graph.nodes if not node.training]
    owner: dict[str, str] = {}
    first, last = dict.fromkeys(graph.inputs, 0), {}
    for i, node in enumerate(nodes):
        shown = _shown(node)
        for name in node.outputs:
            owner[name] = owner.get(shown, shown) if shown else name
            first.setdefault(owner[name], i)
        for name in (*node.outputs, *_read(node)):
            last[owner.get(name, name)] = i
    for name in graph.outputs:
        last[owner.get(name, name)] = len(nodes)
    kinds = ("activation", "input")
    values = tuple(name for name in first if name in last and graph.values[name].kind in kinds)
    at = np.zeros((len(nodes), len(values)), dtype=bool)
    for v, name in enumerate(values):
        at[first[name] : last[name] + 1, v] = True
    return Live(values, at)


def _read(node: Node) -> Iterable[str]:
    return (ref.name for ref in refs((node.args, node.kwargs)))


def _shown(node: Node) -> str | None:
    """Return the argument whose memory a node's outputs are, None where they have their own."""
    schema = operator_of(node.op)._schema  # type: ignore[attr-defined]
    if not any(made.alias_info for made in schema.returns):
        return None
    for place, argument in enumerate(schema.arguments):
        given = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
        if argument.alias_info and (found := refs(given)):
            return found[0].name
    return None


@dataclass(frozen=True, eq=False)
class Peak:
    """The memory of activations, of all samples of the example, as a maximum of polynomials.

    `terms` are the bytes of each tensor, `at` says which are there together: bool,
    `[moments, terms]`. The peak is the largest sum of a row.
    """

    terms: tuple[Term, ...]
    at: np.ndarray

    def evaluate(self, mask: np.ndarray) -> int:
        """Return the peak for one mask; number -1 in a term is what is never cut."""
        mask = np.append(mask, True)
        sizes = [prod((t.factor, *(int(mask[dim].sum()) for dim in t.dims))) for t in self.terms]
        return int((self.at @ np.array(sizes, dtype=np.int64)).max(initial=0))


def peak(flow: Flow) -> Peak:
    """Read the memory of activations off a network and the labels that went through it."""
    found = live(flow.groups.graph)
    return Peak(tuple(_bytes(flow, name) for name in found.values), _worst(found.at))


def _worst(at: np.ndarray) -> np.ndarray:
    """Drop the moments at which nothing is there that is not there at some other moment too."""
    at = np.unique(at, axis=0)
    counts = at.astype(np.int64)
    inside = counts @ counts.T == counts.sum(1)[:, None]  # [i, j]: row i is part of row j
    np.fill_diagonal(inside, False)
    return np.asarray(at[~inside.any(1)])


def _bytes(flow: Flow, name: str) -> Term:
    value = flow.groups.graph.values[name]
    sizes, dims = dict(enumerate(value.shape)), {}
    for along, number in flow.spreads.get(name, ()):
        shorter = shorter_dim(number, flow.rows)
        if shorter == -1:  # what is kept is a block, however it lies
            if sizes.keys() >= set(along):
                dims[along] = number.reshape(-1)
                for dim in along:
                    del sizes[dim]
        elif shorter is not None:
            rest = tuple(slice(None) if d == shorter else 0 for d in range(number.ndim))
            dims[along[shorter],] = number[rest]
            sizes.pop(along[shorter], None)
    return Term(value.dtype.itemsize * prod(sizes.values()), tuple(dims.values()))


def count_activation_bytes(
    model: nn.Module, example_inputs: Inputs, example_kwargs: Mapping[str, Any] | None = None
) -> int:
    """Count the bytes of live activations at the worst moment of one sample's forward pass.

    The model is captured in the sizes it has; see this file's first lines for what counts.

    Args:
        model: Any module.
        example_inputs: A tensor, or a tuple of positional arguments.
        example_kwargs: Keyword arguments.
    """
    graph = trace(model, example_inputs, example_kwargs)
    found = live(graph)
    values = [graph.values[name] for name in found.values]
    sizes = np.array([v.dtype.itemsize * prod(v.shape) for v in values], dtype=np.int64)
    return int((found.at @ sizes).max(initial=0)) // graph.samples
