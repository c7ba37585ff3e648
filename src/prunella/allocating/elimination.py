"""The least sum of functions of a few variables each, exactly: eliminate one variable at a time.

A variable goes by taking, for every value of those it meets, its best value. What is left is a
function of its neighbours. How large these get depends on the order and on how the variables hang
together: along chains and stars, which networks mostly are, never more than two meet.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from math import prod

import numpy as np

from prunella.costs.ladders import Scope

Tables = Mapping[Scope, np.ndarray]
"""Functions: an array over the levels of the variables of each scope."""


def order(
    scopes: Collection[Scope], sizes: Sequence[int], last: int, most: int
) -> list[int] | None:
    """Find an order that ends with one variable, None if a table would have over `most` entries.

    Args:
        scopes: Which variables meet.
        sizes: How many values every variable has.
        last: The variable that stays to the end.
        most: The largest table allowed.
    """
    meets: list[set[int]] = [set() for _ in sizes]
    for scope in scopes:
        for v in scope:
            meets[v].update(scope)
    for v, others in enumerate(meets):
        others.discard(v)
    left = set(range(len(sizes))) - {last}
    found: list[int] = []

    def table(v: int) -> int:
        return prod(sizes[u] for u in meets[v]) * sizes[v]

    widths = {v: table(v) for v in left}
    while left:
        v = min(left, key=lambda v: (widths[v], v))
        if widths[v] > most:
            return None
        for u in meets[v]:
            meets[u] |= meets[v]
            meets[u] -= {u, v}
        left.remove(v)
        found.append(v)
        for u in meets[v] & left:
            widths[u] = table(u)
    return [*found, last]


def eliminate(tables: Tables, sequence: Sequence[int]) -> tuple[np.ndarray, list["Choice"]]:
    """Eliminate all variables but the last of a sequence.

    Returns:
        The least sum for every value of the last variable, and how to choose the others' values.
    """
    place = {v: i for i, v in enumerate(sequence)}
    buckets: list[list[tuple[Scope, np.ndarray]]] = [[] for _ in sequence]
    for scope, table in tables.items():
        buckets[min(place[v] for v in scope)].append((scope, table))
    choices: list[Choice] = []
    for i, v in enumerate(sequence[:-1]):
        scope = tuple(sorted({v}.union(*(found for found, _ in buckets[i]))))
        whole = _sum(buckets[i], scope)
        axis = scope.index(v)
        best = whole.argmin(axis)
        rest = scope[:axis] + scope[axis + 1 :]
        choices.append((v, rest, best))
        left = np.take_along_axis(whole, np.expand_dims(best, axis), axis).squeeze(axis)
        if rest:
            buckets[min(place[u] for u in rest)].append((rest, left))
        else:
            buckets[-1].append(((), left))
    return _sum(buckets[-1], (sequence[-1],)), choices


Choice = tuple[int, Scope, np.ndarray]
"""A variable, and its best value for every value of those it met."""


def _sum(tables: Sequence[tuple[Scope, np.ndarray]], scope: Scope) -> np.ndarray:
    wide = [t.reshape([t.shape[s.index(v)] if v in s else 1 for v in scope]) for s, t in tables]
    return np.asarray(reduce(np.add, wide))


def chosen(choices: Sequence[Choice], last: int, value: int) -> list[int]:
    """Return the values of all variables, given that of the last."""
    values = {last: value}
    for v, rest, best in reversed(choices):
        values[v] = int(best[tuple(values[u] for u in rest)])
    return [values[v] for v in range(len(values))]
