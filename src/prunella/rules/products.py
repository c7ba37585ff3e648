"""Linear layers, matrix products and look-ups.

All products are one thing: tensors whose dimensions have letters, as in an einsum, are laid out
over all letters, meet there element by element, and are summed over the letters that end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor

from prunella.graph import Node, Ref, refs
from prunella.labels import (
    Labels,
    Layer,
    Layers,
    Operand,
    dims_of,
    narrow_to,
    varies,
    varying,
)
from prunella.rules._registry import argument, no_rule, rule

Letters = tuple[Any, ...]
"""One name, whatever it is, for every dimension of a tensor."""


@dataclass(frozen=True)
class Factor:
    """A tensor in a product; `ref` says which, if it is one of the graph's own."""

    operand: Operand
    letters: Letters
    ref: Ref | None = None

    def size(self, letter: Any) -> int:
        """Return the extent along a letter, 1 where the tensor lacks it."""
        return self.operand.shape[self.letters.index(letter)] if letter in self.letters else 1


def factor(labels: Labels, ref: Ref, letters: Sequence[Any]) -> Factor:
    """Name the dimensions of a tensor."""
    return Factor(labels.operand(ref), tuple(letters), ref)


_MOVES = frozenset(
    "permute transpose t mT numpy_T view reshape flatten unflatten squeeze unsqueeze expand clone "
    "contiguous detach to _to_copy slice select alias".split()
)


def is_weight(labels: Labels, ref: Ref | None) -> bool:
    """Say whether a tensor is a parameter or buffer, at most moved: zero where channels are masked.

    One that is computed otherwise, `1 + w` or `w / w.std()`, need not be.
    """
    while ref is not None and labels.value(ref).kind == "activation":
        maker = next(node for node in labels.graph.nodes if ref.name in node.outputs)
        moved = _name(maker) in _MOVES and isinstance(maker.args[0], Ref)
        ref = maker.args[0] if moved else None
    return ref is not None and labels.value(ref).kind in ("parameter", "buffer")


def _name(node: Node) -> str:
    """Return an operator's name without library and overload: "aten.add.Tensor" is "add"."""
    return node.op.split(".")[1]


def multiply(
    labels: Labels,
    node: Node,
    factors: Sequence[Factor],
    output: Sequence[Any],
    *,
    count: bool,
    order: Sequence[tuple[int, int]] = (),
) -> Factor:
    """Multiply tensors two by two, as einsum does; sum over what is in no other one.

    Args:
        labels: The record.
        node: The operator.
        factors: The tensors, at least one.
        output: The letters of the result.
        count: Count multiply-accumulates where anything is summed.
        order: Which two of those that are left come next; their product is then the last of them.
            Without: one after another.
    """
    left = list(factors)
    for i, j in order or [(0, 1)] * (len(left) - 1):
        two = [left[i], left[j]]
        rest = [f for at, f in enumerate(left) if at not in (i, j)]
        needed = {letter for later in rest for letter in later.letters} | set(output)
        both = dict.fromkeys(letter for f in two for letter in f.letters)
        kept = tuple(letter for letter in both if letter in needed)
        made = _product(labels, node, two, kept, count=count)
        left = [*rest, made] if order else [made, *rest]
    return _product(labels, node, left, tuple(output), count=False)


def _product(
    labels: Labels, node: Node, factors: Sequence[Factor], output: Letters, *, count: bool
) -> Factor:
    """Multiply one or two tensors and sum over the letters that are not in the output."""
    ending = {n for f in factors for n in f.letters} - set(output)
    letters = (*output, *sorted(ending, key=str))
    wide = tuple(_extent(factors, letter) for letter in letters)
    summed = [d for d in range(len(output), len(letters)) if wide[d] > 1]
    # Rows that are summed over inside (heads over head_dim) are cut whole, before they meet others.
    operands = [_lay_out(labels, node, f, letters, summed) for f in factors]
    met = labels.meet(wide, operands, node, "is multiplied with a plain extent")
    alone = {d for d in summed if any(f.size(letters[d]) == 1 for f in factors)}
    if count and any(all(n in f.letters for f in factors) for n in ending):
        cut = [a for a in met if not alone & set(varying(a))]
        plain = [n for d, n in enumerate(wide) if d not in alone | dims_of(cut)]
        inner = [a for a in cut if set(varying(a)) <= set(summed)]
        outer = [a for a in cut if not set(varying(a)) <= set(summed)]
        # To einsum a sum of one product is none.
        one = len(inner) == 1 and set(varying(inner[0])) == set(summed) - alone
        sums = node.op == _EINSUM and one and not dims_of(outer) & set(summed)
        labels.multiply(node, prod(plain), _counted([*outer, *inner]), sums=sums)
    ended = [a for a in met if any(varies(a, d) for d in summed)]
    # What masking leaves of a channel counts in a sum, unless a weight is zero there.
    lonely = any(varies(a, d) for a in ended for d in alone)
    if ended and (lonely or not any(is_weight(labels, f.ref) for f in factors)):
        labels.mark(node)
    size = len(output)
    layers = tuple(a.reshape(a.shape[:size]) for a in met if not any(varies(a, d) for d in summed))
    return Factor(Operand(layers, wide[:size]), output)


def _extent(factors: Sequence[Factor], letter: Any) -> int:
    """Return how long a letter is, with broadcasting; it may be 0: rows that no mask chose."""
    return next((n for f in factors if (n := f.size(letter)) != 1), 1)


def _counted(layers: Sequence[Layer]) -> list[Tensor]:
    """List the labels whose numbers multiply: rows that several layers have are counted once."""
    rows: set[int] = set()
    counted = []
    for layer in layers:
        counted.append(narrow_to(layer, set(varying(layer)) - rows).reshape(-1))
        rows |= set(varying(layer))
    return counted


def _lay_out(
    labels: Labels, node: Node, factor: Factor, letters: Letters, summed: list[int]
) -> Operand:
    """Permute a tensor's layers to the order of `letters`, with size 1 for those it lacks."""
    order = sorted(range(len(factor.letters)), key=lambda d: letters.index(factor.letters[d]))
    places = [letters.index(factor.letters[d]) for d in order]

    def lay(sizes: Sequence[int]) -> list[int]:
        wide = [1] * len(letters)
        for place, d in zip(places, order, strict=True):
            wide[place] = sizes[d]
        return wide

    layers = [a.permute(order).reshape(lay(a.shape)) for a in factor.operand.layers]
    shape = tuple(lay(factor.operand.shape))
    whole = frozenset(letters.index(factor.letters[d]) for d in factor.operand.whole)
    rows = tuple(_whole_rows(labels, node, a, summed) for a in layers)
    return Operand(rows, shape, whole=whole)


def _whole_rows(labels: Labels, node: Node, layer: Layer, summed: list[int]) -> Layer:
    """Cut rows whole that are summed over inside, unless it is their insides that are cut."""
    dims = labels.cut_dims(labels.tight(layer))
    rows = set(varying(labels.tight(layer))) - dims
    if (dims | rows) & set(summed) and not dims <= set(summed):
        labels.collapse(labels.tight(layer), summed, "is summed over", node)
    return layer  # uncollapsed: the meeting sees that they were rows, and says so


@rule("aten.linear.default")
def linear(labels: Labels, node: Node) -> Layers:
    """Contract the last dimension with the weight `[out, in]`, or `[in]`."""
    x, weight = node.args[:2]
    batch = range(len(labels.shape(x)) - 1)
    out = ("out",) if len(labels.shape(weight)) == 2 else ()
    factors = [factor(labels, x, (*batch, "in")), factor(labels, weight, (*out, "in"))]
    made = multiply(labels, node, factors, (*batch, *out), count=True).operand
    return _add(labels, node, made, argument(node, 2, "bias"))


def _add(labels: Labels, node: Node, made: Operand, bias: Ref | None) -> Layers:
    if not isinstance(bias, Ref):
        return made.layers
    return labels.meet(made.shape, [made, labels.operand(bias)], node)


@rule("aten.bilinear.default")
def bilinear(labels: Labels, node: Node) -> Layers:
    """Contract the last dimensions of two tensors with the weight `[out, in1, in2]`."""
    a, b, weight = node.args[:3]
    batch = range(len(labels.shape(a)) - 1)
    factors = [
        factor(labels, a, (*batch, "in1")),
        factor(labels, weight, ("out", "in1", "in2")),
        factor(labels, b, (*batch, "in2")),
    ]
    made = multiply(labels, node, factors, (*batch, "out"), count=False).operand
    return _add(labels, node, made, argument(node, 3, "bias"))


@rule("aten.matmul.default", "aten.mm.default", "aten.bmm.default", "aten.mv.default",
      "aten.dot.default", "aten.vdot.default")  # fmt: skip
def matmul(labels: Labels, node: Node) -> Layers:
    """Contract the last dimension of one tensor with the second to last of the other."""
    return _matmul(labels, node, node.args[0], node.args[1]).layers


@rule("aten.addmm.default", "aten.baddbmm.default", "aten.addmv.default")
def addmm(labels: Labels, node: Node) -> Layers:
    """Multiply, then add."""
    bias, a, b = node.args[:3]
    return _add(labels, node, _matmul(labels, node, a, b), bias)


def _matmul(labels: Labels, node: Node, a: Ref, b: Ref) -> Operand:
    m, n = len(labels.shape(a)), len(labels.shape(b))
    rows, columns = ("row",)[: m - 1], ("column",)[: n - 1]
    left = (*range(2 - m, 0), *rows, "in")
    right = (*range(2 - n, 0), "in", *columns)
    output = (*range(2 - max(m, n), 0), *rows, *columns)
    factors = [factor(labels, a, left), factor(labels, b, right)]
    return multiply(labels, node, factors, output, count=True).operand


@rule("aten.outer.default", "aten.ger.default")
def outer(labels: Labels, node: Node) -> Layers:
    """Multiply all pairs."""
    a, b = node.args[:2]
    factors = [factor(labels, a, ("row",)), factor(labels, b, ("column",))]
    return multiply(labels, node, factors, ("row", "column"), count=False).operand.layers


@rule("aten.inner.default", "aten.tensordot.default")
def tensordot(labels: Labels, node: Node) -> Layers:
    """Contract dimensions of two tensors with one another."""
    a, b = node.args[:2]
    m, n = len(labels.shape(a)), len(labels.shape(b))
    inner = ((m - 1,), (n - 1,)) if m and n else ((), ())
    mine, others = node.args[2:4] if node.op == "aten.tensordot.default" else inner
    left: list[Any] = [("left", d) for d in range(m)]
    right: list[Any] = [("right", d) for d in range(n)]
    for i, j in zip(mine, others, strict=True):
        right[j % n] = left[i % m]
    output = [*(n for n in left if n not in right), *(n for n in right if n not in left)]
    factors = [factor(labels, a, left), factor(labels, b, right)]
    return multiply(labels, node, factors, output, count=True).operand.layers


@rule("aten._grouped_mm.default", "transformers.grouped_mm_fallback.default")
def grouped(labels: Labels, node: Node) -> Layers | list[Layers]:
    """Multiply every row `[rows, in]` with the weight of one expert, `[experts, in, out]`."""
    x, weight = node.args[:2]
    if len(labels.shape(x)) != 2 or len(labels.shape(weight)) != 3 or argument(node, 3, "bias"):
        return no_rule(labels, node)
    why = "is an expert that a router chooses"
    layers = labels.pass_through(labels.of(weight), [0], why, node)
    one = Operand(tuple(a.squeeze(0) for a in layers), labels.shape(weight)[1:])
    factors = [factor(labels, x, ("row", "in")), Factor(one, ("in", "out"), weight)]
    return multiply(labels, node, factors, ("row", "out"), count=True).operand.layers


_EINSUM = "aten.einsum.default"


@rule(_EINSUM)
def einsum(labels: Labels, node: Node) -> Layers | list[Layers]:
    """Name the dimensions as the equation does."""
    equation, tensors = node.args[:2]
    named = _letters(equation, [len(labels.shape(ref)) for ref in tensors])
    if named is None:  # a diagonal
        return no_rule(labels, node)
    terms, output = named
    named_apart = [
        (ref, _apart(labels, ref, term, output)) for ref, term in zip(tensors, terms, strict=True)
    ]
    factors = [factor(labels, ref, term) for ref, term in named_apart]
    path = argument(node, 2, "path") or ()  # there where `opt_einsum` is installed
    order = list(zip(path[::2], path[1::2], strict=True))
    return multiply(labels, node, factors, output, count=True, order=order).operand.layers


def _letters(equation: str, ndims: list[int]) -> tuple[list[Letters], Letters] | None:
    """Spell an equation out: dimensions under an ellipsis are numbered from the right."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    spelled = inputs.split(",")
    most = 0
    terms: list[Letters] = []
    for term, ndim in zip(spelled, ndims, strict=True):
        before, dots, after = term.partition("...")
        hidden = ndim - len(before) - len(after) if dots else 0
        most = max(most, hidden)
        terms.append((*before, *range(-hidden, 0), *after))
    if arrow:
        before, dots, after = output.partition("...")
        result: Letters = (*before, *(range(-most, 0) if dots else ()), *after)
    else:
        once = sorted(n for n in set(inputs) - set(".,") if inputs.count(n) == 1)
        result = (*range(-most, 0), *once)
    return None if any(len(set(t)) < len(t) for t in (*terms, result)) else (terms, result)


def _apart(labels: Labels, ref: Ref, term: Letters, output: Letters) -> Letters:
    """Rename letters of extent 1 that end: nothing is summed, so no product is counted."""
    sizes = zip(term, labels.shape(ref), strict=True)
    return tuple(n if size > 1 or n in output else (n, ref.name) for n, size in sizes)


@rule("aten.embedding_bag.padding_idx", "aten.embedding_bag.default")
def embedding_bag(labels: Labels, node: Node) -> list[Layers]:
    """Look rows up and reduce those of a bag: the rows must stay, the columns go on."""
    layers = labels.pass_through(labels.of(node.args[0]), [0], "is looked up by index", node)
    for ref in refs((node.args[1:], node.kwargs)):  # which rows, where bags begin, what each weighs
        for layer in labels.of(ref):
            labels.freeze(layer, "says what is looked up", node)
    return [layers, *(() for _ in node.outputs[1:])]


@rule("aten.embedding.default")
def embedding(labels: Labels, node: Node) -> Layers:
    """Look rows up: the rows must stay, the columns go on."""
    weight = node.args[0]
    ndim = len(labels.shapes[node.outputs[0]])
    layers = labels.pass_through(labels.of(weight), [0], "is looked up by index", node)
    return tuple(a.reshape((1,) * (ndim - 1) + (-1,)) for a in layers)
