"""Keep the scale of attention where it is read off the size of heads that become shorter.

`scaled_dot_product_attention` divides scores by the root of head_dim, and much code does so by
hand. In the masked model positions that go are zeros, and the scale is the old one: that is what
sensitivity measures and what trains under a mask, so it is what comes out of the cut. With the new
size's scale every score would grow, by 41 percent at half the positions, at the moment of cutting.
Where the code computes the scale from a size, queries and keys carry the quotient of both scales in
their weights, half each.

The old scale is exact, not always the best: sharper attention makes up for a part of what is lost
(a sentence encoder that lost half of its positions without finetuning did better with the new one).
Such a temperature is for finetuning or a repair to find, with data; cutting does not guess it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np
from torch import nn

from prunella.coupling.resizing import Resized, mask_from, resized
from prunella.errors import TraceError
from prunella.graph import Graph, Node, Ref, refs
from prunella.model.examples import Arguments
from prunella.plan import Axis, Groups, Plan
from prunella.rules import RULES, creation, scaling
from prunella.tracing import trace

Product = tuple[Node, tuple[Ref, Ref]]

Factors = dict[Axis, np.ndarray]
"""By what the original's positions on an axis are multiplied."""


def keep_scales(
    model: nn.Module,
    plan: Plan,
    groups: Groups,
    inputs: Arguments,
    shrink: Callable[[Plan], nn.Module],
) -> Plan:
    """Return the plan with the factors that keep the scale of attention.

    A module's attribute that is the root of the old size (`self.scale`) becomes that of the new
    one: a class that is built anew with shorter heads computes it so.

    Args:
        model: The model the plan was made for.
        plan: What is kept.
        groups: The groups of the model.
        inputs: Arguments and keyword arguments.
        shrink: Makes the model of a plan, whose code is watched computing its numbers.
    """
    graph = groups.graph
    products = [(node, both) for node, both in scaling.scores(graph) if node.name in groups.marked]
    if not products or graph.recorded:
        return replace(plan, factors={})
    sizes = resized(groups, mask_from(groups, plan))
    products = [(node, both) for node, both in products if _is_cut(both, sizes)]
    factors = _Factors(groups, sizes)
    products = [(node, both) for node, both in products if all(map(factors.sources, both))]
    products = [
        (node, both) for node, both in products if factors.feed_nothing_else(both, products)
    ]
    if not products:
        return replace(plan, factors={})
    plan = replace(plan, attributes=_with_roots(model, plan, products, sizes))
    try:
        again = _computing(trace(shrink(plan), *inputs).nodes)
    except TraceError:  # the proof decides
        return replace(plan, factors={})
    before = _computing(graph.nodes)
    if [node.op for node in again] == [node.op for node in before]:
        factors.settle(products, {a.name: b for a, b in zip(before, again, strict=True)})
    return replace(
        plan,
        factors={
            axis.tensor: {
                axis.dim: tuple(found[np.array(plan.kept[axis.tensor][axis.dim])].tolist())
            }
            for axis, found in factors.by_axis.items()
        },
    )


def _asks_only_its_shape(node: Node, name: str) -> bool:
    """Say whether a node uses a tensor for nothing but its size and kind (`k.expand_as(q)`)."""
    if getattr(RULES.get(node.op), "__module__", "") == creation.__name__:
        return True
    first = next(iter(refs(node.args)), None)
    return node.op.split(".")[1].endswith("_as") and first is not None and first.name != name


def _computing(nodes: Sequence[Node]) -> list[Node]:
    """Leave out copies: code that asks for one gets none where the memory is right already."""
    return [node for node in nodes if node.op not in _COPIES]


_COPIES = ("aten.contiguous.default", "aten.clone.default")
_ROOTS = ("scal", "factor", "norm", "sqrt", "temp")  # and not a dropout of 0.1 beside heads of 100


def _with_roots(
    model: nn.Module, plan: Plan, products: list[Product], sizes: Resized
) -> dict[str, dict[str, int | float]]:
    """Let floats that are the root of the dense size of heads be that of their new size."""
    attributes = {module: dict(found) for module, found in plan.attributes.items()}
    values = sizes.flow.groups.graph.values
    for node, (queries, _) in products:
        old, new = values[queries.name].shape[-1], sizes.shapes[queries.name][-1]
        for name, number in vars(model.get_submodule(node.module)).items():
            for power in (0.5, -0.5) if any(word in name.lower() for word in _ROOTS) else ():
                if type(number) is float and math.isclose(number, old**power):
                    attributes.setdefault(node.module, {})[name] = float(new**power)
    return attributes


def _is_cut(pair: tuple[Ref, Ref], sizes: Resized) -> bool:
    """Say whether a product loses positions that it sums over."""
    return not sizes.mask[_summed(pair, sizes)].all()


def _summed(pair: tuple[Ref, Ref], sizes: Resized) -> np.ndarray:
    """Return the channel numbers that both sides of a product carry."""
    return np.intersect1d(_numbers(sizes, pair[0].name), _numbers(sizes, pair[1].name))


def _numbers(sizes: Resized, name: str) -> np.ndarray:
    """Return the channel numbers that a tensor carries."""
    carried = [np.unique(ids) for _, ids in sizes.flow.spreads.get(name, ())]
    found = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *carried]))
    return found[found >= 0]


class _Factors:
    def __init__(self, groups: Groups, sizes: Resized) -> None:
        self.groups, self.sizes = groups, sizes
        self.graph: Graph = groups.graph
        self.changes: dict[str, float] = {}  # what a node multiplies by, over what it will
        self.makers = {name: node for node in self.graph.nodes for name in node.outputs}
        self.users: dict[str, list[Node]] = {}
        for node in self.graph.nodes:
            for ref in refs((node.args, node.kwargs)):
                self.users.setdefault(ref.name, []).append(node)
        self.by_axis: Factors = {}

    def feed_nothing_else(self, both: tuple[Ref, Ref], products: list[Product]) -> bool:
        """Say whether what makes both sides of a product is used for nothing but such products.

        Queries that are also added to what attention returns, or compared with a table of
        positions, would carry their factor there. Where the scale is an attribute of the module
        it then simply stays the old one.
        """
        summed = _summed(both, self.sizes)
        names = self._names(both)  # the same for layers that share their weights
        allowed = {node.name for node, other in products if self._names(other) == names}
        values = self.graph.values.items()
        left = [
            name for name, value in values if value.kind == "parameter" and value.source in names
        ]
        seen = set(left)
        while left:
            name = left.pop()
            for user in self.users.get(name, []):
                if user.name in allowed or _asks_only_its_shape(user, name):
                    continue
                ways = scaling.through(user) or []
                if not any(name == ref.name for together in ways for ref in together):
                    return False
                for made in user.outputs:
                    if made not in seen and np.isin(_numbers(self.sizes, made), summed).any():
                        seen.add(made)
                        left.append(made)
        return True

    def _names(self, both: tuple[Ref, Ref]) -> set[str]:
        return {name for ref in both for name in (self.sources(ref) or (set(), []))[0]}

    def settle(self, products: list[Product], again: Mapping[str, Node]) -> None:
        """Undo what the scale of products changed by, in the weights that both sides come from.

        Args:
            products: The products that lose positions they sum over.
            again: Every node that is no copy, as the pruned model calls it.
        """
        shapes = {name: value.shape for name, value in self.graph.values.items()}
        for node in _computing(self.graph.nodes):
            change = scaling.multiplier(node) / scaling.multiplier(again[node.name])
            change *= scaling.scale_of(node, shapes)
            change /= scaling.scale_of(replace(again[node.name], args=node.args), self.sizes.shapes)
            if not math.isclose(change, 1, rel_tol=1e-6):
                self.changes[node.name] = change
        for node, both in products:
            self._settle(node, both)

    def _settle(self, node: Node, both: tuple[Ref, Ref]) -> None:
        change = self.changes.get(node.name, 1.0) * self._after(node)
        names: set[str] = set()
        for ref in both:
            found = self.sources(ref)
            if found is not None:
                names |= found[0]
                change *= prod(self.changes.get(name, 1.0) for name in found[1])
        if math.isclose(change, 1, rel_tol=1e-6):
            return
        summed = _summed(both, self.sizes)
        for axis, number in self.groups.axes.items():
            mine = np.isin(number, summed)
            if axis.tensor in names and number.ndim == 1 and mine.any():
                self.by_axis.setdefault(axis, np.ones(len(number)))[mine] = math.sqrt(change)

    def _after(self, node: Node) -> float:
        """Return what the scores alone are multiplied by, afterwards."""
        change = 1.0
        while len(node.outputs) == 1 and len(users := self.users.get(node.outputs[0], [])) == 1:
            node = users[0]
            if not scaling.passes(node):
                break
            change *= self.changes.get(node.name, 1.0)
        return change

    def sources(self, ref: Ref) -> tuple[set[str], list[str]] | None:
        """Return the parameters that scale a tensor when they are scaled, and nodes on the way."""
        value = self.graph.values[ref.name]
        if value.kind != "activation":
            return ({value.source}, []) if value.kind == "parameter" else None
        if 0 in value.shape:  # an empty cache, to which keys are appended
            return set(), []
        node = self.makers[ref.name]
        for together in scaling.through(node) or []:
            found = [self.sources(other) for other in together]
            if found and all(found):
                names = {name for part in found if part for name in part[0]}
                way = next(part[1] for part in found if part)
                return names, [*way, node.name]
        return None
