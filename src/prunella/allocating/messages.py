"""A bound on the least sum of functions of one and two variables, where elimination cannot reach.

Nodes and edges each have a least value, and the sum of these is a bound. Moving values from edges
to nodes and on to other edges changes no sum, but the bound: passes over the nodes, forth and back,
raise it until they agree. Along products of sizes it comes near the true least sum, since two
layers that share a cost both gain from being small.

Source: Kolmogorov 2015, "A new look at reweighted message passing", section 3 (SRMP), for pairs.
"""

from collections.abc import Mapping

import numpy as np

from prunella.costs.ladders import Scope

_PASSES = 12


class Messages:
    """Functions of one and two variables, and what edges have passed to nodes.

    Args:
        tables: The functions: an array over the values of each scope, of one or two variables.
        sizes: How many values every variable has.
    """

    def __init__(self, tables: Mapping[Scope, np.ndarray], sizes: list[int]) -> None:
        self._sizes, most = sizes, max(sizes)
        pairs = sorted(scope for scope in tables if len(scope) == 2)
        ends = [(a, b) for a, b in pairs] + [(b, a) for a, b in pairs]
        self._unary = [
            np.asarray(tables.get((v,), np.zeros(n)), dtype=np.float64) for v, n in enumerate(sizes)
        ]
        self._out: list[np.ndarray] = []  # by variable: its edges
        self._other: list[np.ndarray] = []  # by variable: the variables there
        self._table: list[np.ndarray] = []  # by variable: [edges, its values, the other's values]
        for v, n in enumerate(sizes):
            mine = [e for e, (a, _) in enumerate(ends) if a == v]
            stack = np.full((len(mine), n, most), np.inf)
            for i, e in enumerate(mine):
                a, b = ends[e]
                stack[i, :, : sizes[b]] = tables[a, b] if a < b else tables[b, a].T
            self._out.append(np.array(mine, dtype=int))
            self._other.append(np.array([ends[e][1] for e in mine], dtype=int))
            self._table.append(stack)
        self._back = np.roll(np.arange(len(ends)), len(pairs))  # by edge: the same, seen otherwise
        self._passed = np.zeros((len(ends), most))  # by edge: what it gave its first end

    def run(self) -> None:
        """Pass values forth and back."""
        forth = list(range(len(self._sizes)))
        for i in range(_PASSES):
            for v in forth if i % 2 == 0 else reversed(forth):
                self._visit(v, i % 2 == 0)

    def _visit(self, v: int, forth: bool) -> None:
        edges, n = self._out[v], self._sizes[v]
        if not len(edges):
            return
        given = self._given(v)
        whole = self._unary[v] + given.sum(0)
        ahead = self._other[v] > v if forth else self._other[v] < v
        share = 1 / max(ahead.sum(), (~ahead).sum())
        given[ahead] -= share * whole
        self._passed[edges, :n] = given

    def _given(self, v: int) -> np.ndarray:
        """Return what the edges of a variable can give it: `[edges, values]`."""
        back = self._passed[self._back[self._out[v]]]
        return np.asarray((self._table[v] - back[:, None, :]).min(2))

    def bound(self) -> tuple[float, list[np.ndarray]]:
        """Return a bound on the least sum, and on that with every value of every variable."""
        at_node = []
        at_edges = []
        for v, n in enumerate(self._sizes):
            passed = self._passed[self._out[v], :n]
            at_node.append(self._unary[v] + passed.sum(0))
            at_edges.append(self._given(v) - passed)
        nodes = sum(float(found.min()) for found in at_node)
        edges = sum(float(found.min(1).sum()) for found in at_edges) / 2  # each seen twice
        marginals = [
            nodes + edges - node.min() - given.min(1).sum() + node + given.sum(0)
            for node, given in zip(at_node, at_edges, strict=True)
        ]
        return nodes + edges, marginals

    def choose(self) -> list[int]:
        """Choose a value for every variable, in order, given those before."""
        values: list[int] = []
        for v, n in enumerate(self._sizes):
            passed = self._passed[self._out[v], :n]
            score = self._unary[v] + passed.sum(0)
            for i, u in enumerate(self._other[v].tolist()):
                if u < v:
                    back = self._passed[self._back[self._out[v][i]], values[u]]
                    score = score + self._table[v][i, :, values[u]] - passed[i] - back
            values.append(int(score.argmin()))
        return values
