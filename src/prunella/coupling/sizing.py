"""What the sizes written in a model's own code ask of the channels that may be cut.

Every size argument is an equation: what the code hands over (an attribute, a shape, arithmetic on
them, a literal) equals how many channels are kept along a dimension. Where the code reads a shape
that changes alike, nothing is asked. Where it reads an attribute, that attribute follows. Where it
reads the size of something else that happened to be equal (`x.reshape(B, N, C)` after attention,
with the C of the residual stream), both must keep equally many. Where it says a literal, the
channels must stay, unless the graph is rewritten.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd

import numpy as np
import torch

from prunella import rules
from prunella.graph import Attr, Calc, Dim, Node, Size
from prunella.labels import Extent, Followed, Labels, varying
from prunella.labels import Rows as LabelRows
from prunella.labels.extents import Rows, along, row_key
from prunella.plan import Form, Frozen

LITERAL = "its size is written into the code"
"""How the reason of what only a rewritten graph can cut begins."""


@dataclass(frozen=True, eq=False)
class Count:
    """A number as a function of what is kept: `fixed` + the sum of `times` over kept `ids`.

    The whole is divided by `per`. `ids` are united labels (components), ascending.
    """

    fixed: int
    ids: np.ndarray
    times: np.ndarray
    per: int = 1

    @property
    def constant(self) -> bool:
        """Whether nothing that may be cut is counted."""
        return not len(self.ids)


@dataclass(frozen=True, slots=True)
class _Equation:
    """The model's code hands over `given` where `needed` are kept."""

    given: Size
    needed: Size | Extent
    node: Node | None


class _NotLinearError(Exception):
    """A number is no sum of what is kept."""


def bind_sizes(labels: Labels, components: np.ndarray, form: Form) -> bool:
    """Record what the model's own sizes ask: frozen labels, equal rows, attributes that follow.

    Returns whether the model's own code froze anything.

    Args:
        labels: The record of one propagation, to be added to.
        components: For every label, the number of what it is united with.
        form: Under "graph" sizes are rewritten, so only positions that are needed bind.
    """
    return _Binder(labels, components).bind(form)


class _Binder:
    def __init__(self, labels: Labels, components: np.ndarray) -> None:
        self.labels = labels
        self.ids = components.astype(np.int64)
        self.label_of = np.zeros(self.ids.max(initial=-1) + 1, np.int64)
        self.label_of[self.ids[::-1]] = np.arange(len(self.ids))[::-1]
        self.rows: Rows = frozenset(
            row_key(row) for rows in labels.rows for row in self.ids[rows.labels.numpy()]
        )
        self.stuck = np.zeros(len(self.label_of), dtype=bool)
        for found, _ in labels.frozen:
            self.stuck[self.ids[found.numpy()]] = True
        self.bound: dict[Attr, Count] = {}
        self._known: dict[tuple[str, int], np.ndarray | None] = {}

    def bind(self, form: Form) -> bool:
        for needed in self.labels.needed:
            found = self._along(needed.extent.value, needed.extent.dim)
            if found is not None:
                self._freeze(found[needed.extent.start : needed.extent.stop], needed.reason,
                             needed.node)  # fmt: skip
        before = len(self.labels.frozen)
        if form == "class":
            self._bind_code()
        code_binds = len(self.labels.frozen) > before
        for node in self.labels.graph.nodes:
            if node.name not in self.labels.marked and self._number_changes(node):
                self.labels.mark(node)
        return code_binds

    def _bind_code(self) -> None:
        waiting = list(self._equations())
        waiting.sort(key=lambda equation: not isinstance(equation.given, Attr))
        while waiting:
            left = [equation for equation in waiting if not self._settle(equation)]
            if len(left) == len(waiting):
                self._give_up(left)
                break
            waiting = left
        for attr, count in self.bound.items():
            if (count.times < 0).any() or count.fixed < 0:  # no number of channels: hold it
                self._freeze(count.ids, "its size is subtracted from another", None)
            elif not self._thaw(count).constant:
                row = np.repeat(count.ids, count.times)
                row = np.append(row, np.full(count.fixed, -1))
                self.labels.followed.append(
                    Followed(attr.module, attr.name, self._labels(row), count.per)
                )

    def _number_changes(self, node: Node) -> bool:
        """Say whether a node computes with a number (`x.sum(1) / x.shape[1]`) that changes."""
        extents = rules.extents(self.labels, node)
        for path, size in node.sizes.items():
            if path not in extents and not isinstance(size, int):
                try:
                    count = self._count(size)
                except _NotLinearError:
                    return True
                if count is not None and not count.constant:
                    return True
        return False

    # -- the equations

    def _equations(self) -> Iterator[_Equation]:
        for node in self.labels.graph.nodes:
            extents = rules.extents(self.labels, node)
            for path, extent in extents.items():
                if path in node.sizes:
                    yield _Equation(node.sizes[path], extent, node)
        for left, right in self.labels.graph.equal:
            if isinstance(left, Attr) != isinstance(right, Attr):
                attr, other = (left, right) if isinstance(left, Attr) else (right, left)
                yield _Equation(attr, other, None)

    def _settle(self, equation: _Equation) -> bool:
        """Draw the conclusion of one equation; False where an attribute is not known yet."""
        try:
            needed = self._needed(equation)
            if needed is None:
                return False
            return self._equate(equation.given, needed, equation.node)
        except _NotLinearError:
            self._stop(equation)
            return True

    def _needed(self, equation: _Equation) -> Count | None:
        if isinstance(equation.needed, Extent):
            return self._thaw(self._extent(equation.needed))
        return self._count(equation.needed)

    def _equate(self, given: Size, needed: Count, node: Node | None) -> bool:
        if isinstance(given, int):
            if given != -1 or node is None:
                self._equal(_fixed(given), needed, node, LITERAL)
            return True
        if isinstance(given, Attr) and given not in self.bound:
            self.bound[given] = needed
            return True
        if isinstance(given, Calc) and given.op == "//" and needed.constant:
            over, under = self._count(given.left), self._count(given.right)
            if over is not None and under is not None and not under.constant:
                # `C // num_heads` is the size of a head, which stays.
                self._equal(over, _times(under, needed), node, "its quotient with another stays")
                return True
        found = self._count(given)
        if found is not None:
            self._equal(found, needed, node, "its size is tied to another that stays")
            return True
        return isinstance(given, Calc) and self._invert(given, needed, node)

    def _invert(self, given: Calc, needed: Count, node: Node | None) -> bool:
        """Solve for the side of a calculation in which an attribute is not known yet."""
        left, right = self._count(given.left), self._count(given.right)
        if left is None and right is None:
            return False
        if given.op == "*":
            known, other = (left, given.right) if right is None else (right, given.left)
            assert known is not None
            return self._equate(other, _divide(needed, known), node)
        if given.op == "//":
            if left is None:
                assert right is not None
                return self._equate(given.left, _times(needed, right), node)
            return self._equate(given.right, _divide(left, needed), node)
        if given.op == "+":
            known, other = (left, given.right) if right is None else (right, given.left)
            assert known is not None
            return self._equate(other, _add(needed, known, -1), node)
        if given.op == "-":
            if left is None:
                assert right is not None
                return self._equate(given.left, _add(needed, right, 1), node)
            return self._equate(given.right, _add(left, needed, -1), node)
        raise _NotLinearError

    def _give_up(self, left: list[_Equation]) -> None:
        """Hold attributes nobody explains where they are, and draw the rest of the conclusions.

        Of several unknown factors the one is let go that the needed channels are a multiple of
        without: with whole heads `num_heads * head_dim` leaves `head_dim` as it is.
        """
        for equation in left:
            for attr in _attributes(equation.given):
                if attr in self.bound:
                    continue
                others = [a for a in _attributes(equation.given) if a != attr]
                fresh = [a for a in others if a not in self.bound]
                for other in fresh:
                    self.bound[other] = _fixed(other.value)
                if self._settles_evenly(equation):
                    break
                for other in fresh:
                    del self.bound[other]
            else:
                for attr in _attributes(equation.given):
                    self.bound.setdefault(attr, _fixed(attr.value))
                self._settle(equation)

    def _settles_evenly(self, equation: _Equation) -> bool:
        before = dict(self.bound)
        try:
            needed = self._needed(equation)
            if needed is not None and self._equate(equation.given, needed, equation.node):
                fresh = [count for attr, count in self.bound.items() if attr not in before]
                if all(count.per == 1 for count in fresh):
                    return True
        except _NotLinearError:
            pass
        self.bound = before
        return False

    def _stop(self, equation: _Equation) -> None:
        """Hold everything in place that an equation speaks of which is not understood."""
        why = "its size takes part in a calculation that is not understood"
        for part in (equation.given, equation.needed):
            for count in self._leaves(part):
                self._freeze(count.ids, why, equation.node)

    def _leaves(self, size: Size | Extent) -> Iterator[Count]:
        if isinstance(size, Extent):
            yield self._extent(size)
        elif isinstance(size, Dim):
            yield self._dim(size)
        elif isinstance(size, Attr):
            if size in self.bound:
                yield self.bound[size]
        elif isinstance(size, Calc):
            yield from self._leaves(size.left)
            yield from self._leaves(size.right)

    # -- numbers as counts

    def _count(self, size: Size) -> Count | None:
        """Return a number as a count; None where an attribute in it is not known yet."""
        if isinstance(size, int):
            return _fixed(size)
        if isinstance(size, Dim):
            return self._thaw(self._dim(size))
        if isinstance(size, Attr):
            found = self.bound.get(size)
            return None if found is None else self._thaw(found)
        left, right = self._count(size.left), self._count(size.right)
        if left is None or right is None:
            return None
        if left.constant and right.constant:
            a, b = left.fixed // left.per, right.fixed // right.per
            if size.op in ("//", "%"):
                return _fixed((a // b if size.op == "//" else a % b) if b else 0)
        if size.op == "+":
            return _add(left, right, 1)
        if size.op == "-":
            return _add(left, right, -1)
        if size.op == "*":
            return _times(left, right)
        if size.op == "//":
            return _divide(left, right)
        raise _NotLinearError

    def _dim(self, dim: Dim) -> Count:
        size = self.labels.shapes[dim.value][dim.dim]
        return self._extent(Extent(dim.value, dim.dim, 0, size))

    def _extent(self, extent: Extent) -> Count:
        found = self._along(extent.value, extent.dim)
        if found is None:
            return Count(extent.sign * (extent.stop - extent.start), _NONE, _NONE, extent.per)
        ids, times = np.unique(found[extent.start : extent.stop], return_counts=True)
        return Count(0, ids, times * extent.sign, extent.per)

    def _along(self, value: str, dim: int) -> np.ndarray | None:
        if (value, dim) not in self._known:
            spreads = [
                (dims, self.ids[layer.reshape([layer.shape[d] for d in dims]).numpy()])
                for layer in self.labels.layers.get(value, ())
                if dim in (dims := varying(layer))
            ]
            try:
                self._known[value, dim] = along(spreads, dim, self.rows)
            except LookupError:
                self._known[value, dim] = None
        return self._known[value, dim]

    def _thaw(self, count: Count) -> Count:
        """Count what may not be cut as fixed."""
        stuck = self.stuck[count.ids] if len(count.ids) else np.zeros(0, dtype=bool)
        if not stuck.any():
            return count
        fixed = count.fixed + int(count.times[stuck].sum())
        return Count(fixed, count.ids[~stuck], count.times[~stuck], count.per)

    # -- conclusions

    def _equal(self, a: Count, b: Count, node: Node | None, reason: str) -> None:
        """Ask that two numbers stay equal."""
        difference = _add(self._thaw(a), self._thaw(b), -1)
        if difference.constant:
            return
        more, fewer = difference.times > 0, difference.times < 0
        if more.all() or fewer.all():
            self._freeze(difference.ids, reason, node)
            return
        left = np.repeat(difference.ids[more], difference.times[more])
        right = np.repeat(difference.ids[fewer], -difference.times[fewer])
        if len(left) - len(right) != -difference.fixed:
            self._freeze(difference.ids, reason, node)  # not equal to begin with: not understood
            return
        rows = [_padded(row, max(len(left), len(right))) for row in (left, right)]
        where = node.where() if node else "a comparison in the model's code"
        stacked = torch.stack([self._labels(row) for row in rows])
        self.labels.rows.append(LabelRows(stacked, where, moved=False, tie=True))

    def _freeze(self, ids: np.ndarray, reason: str, node: Node | None) -> None:
        ids = np.unique(ids)
        ids = ids[~self.stuck[ids]] if len(ids) else ids
        if len(ids):
            op, module = (node.op, node.module) if node else ("==", "")
            if reason == LITERAL and node is not None and node.line:
                reason = f"{reason} at {node.line}"
            self.stuck[ids] = True
            self.labels.frozen.append((self._labels(ids), Frozen(reason, op, module)))

    def _labels(self, ids: np.ndarray) -> torch.Tensor:
        """Return a label for every id; for -1 the label that is never cut."""
        found = np.where(ids < 0, self.labels.constant, self.label_of[ids])
        return torch.from_numpy(found)


_NONE = np.zeros(0, dtype=np.int64)


def _fixed(number: int) -> Count:
    return Count(number, _NONE, _NONE)


def _padded(row: np.ndarray, size: int) -> np.ndarray:
    return np.append(row, np.full(size - len(row), -1)).astype(np.int64)


def _scaled(count: Count, factor: int, per: int) -> Count:
    """Multiply by `factor` and divide by `per`, in lowest terms."""
    fixed, times, per = count.fixed * factor, count.times * factor, count.per * per
    common = gcd(fixed, per, *times.tolist()) if len(times) else gcd(fixed, per)
    if per < 0:
        common = -common
    common = common or 1
    return Count(fixed // common, count.ids, times // common, per // common)


def _add(a: Count, b: Count, sign: int) -> Count:
    """Return `a + sign * b`."""
    a_times, b_times = a.times * b.per, b.times * a.per * sign
    ids, inverse = np.unique(np.concatenate([a.ids, b.ids]), return_inverse=True)
    times = np.bincount(inverse, np.concatenate([a_times, b_times]), len(ids)).astype(np.int64)
    fixed = a.fixed * b.per + sign * b.fixed * a.per
    return _scaled(Count(fixed, ids[times != 0], times[times != 0]), 1, a.per * b.per)


def _times(a: Count, b: Count) -> Count:
    if not a.constant:
        a, b = b, a
    if not a.constant:
        raise _NotLinearError
    return _scaled(b, a.fixed, a.per)


def _divide(a: Count, b: Count) -> Count:
    """Return `a / b`; exact in the model as it is, so exact as long as what it counts is whole."""
    if b.constant:
        if b.fixed == 0:
            raise _NotLinearError
        return _scaled(a, b.per, b.fixed)
    quotient = _ratio(a, b)
    if quotient is None:
        raise _NotLinearError
    return quotient


def _ratio(a: Count, b: Count) -> Count | None:
    """Return the constant `a / b` where one is a multiple of the other channel by channel."""
    if a.fixed or b.fixed or len(a.ids) != len(b.ids) or not (a.ids == b.ids).all():
        return None
    factors = {(int(x) // gcd(x, y), int(y) // gcd(x, y))
               for x, y in zip(a.times.tolist(), b.times.tolist(), strict=True)}  # fmt: skip
    if len(factors) != 1:
        return None
    over, under = factors.pop()
    return _scaled(_fixed(over), b.per, under * a.per)


def _attributes(size: Size) -> list[Attr]:
    found: dict[Attr, None] = {}
    if isinstance(size, Attr):
        found[size] = None
    elif isinstance(size, Calc):
        found = dict.fromkeys([*_attributes(size.left), *_attributes(size.right)])
    return list(found)
