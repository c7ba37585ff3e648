"""Statistics over dimensions: what they run over may be cut, they are then of what is kept.

A mean over channels is another number when channels are gone. So such a node is *marked*, and the
masked model, too, takes the statistics over the kept channels only.
"""

from collections.abc import Iterable

import torch

from prunella.graph import Node, refs
from prunella.labels import (
    Labels,
    Layers,
    dims_of,
    outermost,
    varies,
    varying,
)
from prunella.rules._registry import argument, rule

_OVERLOADS = "dim dims dim_IntList default int dim_int correction names_dim"
# Their second argument is the order of the norm, the third the dimensions.
_NORMS = (
    "aten.linalg_vector_norm.default",
    "aten.linalg_norm.default",
    "aten.linalg_matrix_norm.str_ord",
    "aten.linalg_matrix_norm.default",
    "aten.norm.ScalarOpt_dim",
    "aten.norm.ScalarOpt_dim_dtype",
)
# Their second argument is a flag.
_OVER_ALL = tuple(f"aten.{op}.default" for op in ("var", "std", "var_mean", "std_mean"))


def _named(ops: str) -> list[str]:
    return [f"aten.{op}.{overload}" for op in ops.split() for overload in _OVERLOADS.split()]


def take_statistics(labels: Labels, node: Node, layers: Layers, dims: Iterable[int]) -> Layers:
    """Let statistics run over `dims`: each layer then varies along one of them alone, or none.

    What varies along others too (head_dim of heads) is cut along those: whole heads. Where it is
    the insides of heads that are cut, what varies along their positions does so on.
    """
    over = set(dims)
    made = []
    for layer in map(labels.tight, layers):
        inside = set(varying(layer)) & over
        if labels.inside and labels.cut_dims(layer) & over:
            inside = set()  # every row has statistics over what it keeps
        elif inside == set(varying(layer)):
            inside -= {outermost(layer)} if inside else set()
        made.append(labels.collapse(layer, sorted(inside), "is reduced over", node))
    if dims_of(made) & over:
        labels.mark(node)
    return tuple(a for a in made if a.numel() > 1)


@rule(
    *_named(
        "mean sum nansum nanmean amax amin max min aminmax prod var std norm logsumexp any all "
        "var_mean std_mean"
    ),
    "aten.norm.Scalar",
    "aten.count_nonzero.dim_IntList",
    *_NORMS,
)
def reduce(labels: Labels, node: Node) -> list[Layers]:
    """End the labels of the reduced dimensions."""
    layers, reduced = labels.of(node.args[0]), _reduced(labels, node)
    if node.op in ("aten.max.dim", "aten.min.dim") and _is_used(labels, node.outputs[1]):
        return _search(labels, node)
    return _drop(labels, node, take_statistics(labels, node, layers, reduced), reduced)


@rule(*_named("argmax argmin median nanmedian mode kthvalue"))
def positions(labels: Labels, node: Node) -> list[Layers]:
    """Let other dimensions pass; those that the result counts positions along must stay."""
    return _search(labels, node)


def _search(labels: Labels, node: Node) -> list[Layers]:
    layers, reduced = labels.of(node.args[0]), _reduced(labels, node)
    kept = labels.pass_through(layers, sorted(reduced), "is searched for a position", node)
    return _drop(labels, node, kept, reduced)


def _reduced(labels: Labels, node: Node) -> set[int]:
    ndim = len(labels.shape(node.args[0]))
    index = 2 if node.op in _NORMS or "kthvalue" in node.op else 1
    dims = None if node.op in (*_OVER_ALL, "aten.norm.Scalar") else argument(node, index, "dim")
    if dims is None and "linalg_matrix_norm" in node.op:
        dims = (-2, -1)
    if dims is None and node.op == "aten.kthvalue.default":
        dims = -1
    if dims is None:
        dims = range(ndim)
    return {d % ndim for d in ((dims,) if isinstance(dims, int) else dims)} or set(range(ndim))


def _drop(labels: Labels, node: Node, layers: Layers, reduced: set[int]) -> list[Layers]:
    """Drop the reduced dimensions and what varies along them."""
    ndim = len(labels.shape(node.args[0]))
    left = [a for a in layers if not any(varies(a, d) for d in reduced)]
    made = []
    for name in node.outputs:
        keep = len(labels.shapes[name]) == ndim
        shape = [d for d in range(ndim) if keep or d not in reduced]
        made.append(tuple(a.reshape([a.shape[d] for d in shape]) for a in left))
    return made


def _is_used(labels: Labels, name: str) -> bool:
    users = (ref.name for node in labels.graph.nodes for ref in refs((node.args, node.kwargs)))
    return name in labels.graph.outputs or name in users


_REDUCTIONS = {  # where a loss is told how to reduce; 0: not at all
    "aten.mse_loss.default": 2, "aten.l1_loss.default": 2, "aten.smooth_l1_loss.default": 2,
    "aten.huber_loss.default": 2, "aten.kl_div.default": 2, "aten.binary_cross_entropy.default": 3,
    "aten.binary_cross_entropy_with_logits.default": 4,
}  # fmt: skip


@rule(*_REDUCTIONS)
def loss(labels: Labels, node: Node) -> Layers:
    """Compare two tensors element by element, and reduce to a number on demand."""
    tensors = refs((node.args, node.kwargs))
    shape = tuple(torch.broadcast_shapes(*map(labels.shape, tensors)))
    layers = labels.meet(shape, [labels.operand(ref) for ref in tensors], node)
    if argument(node, _REDUCTIONS[node.op], "reduction", _MEAN) == _NOT:
        return layers
    take_statistics(labels, node, layers, range(len(shape)))
    return ()


_NOT, _MEAN = 0, 1


@rule("aten.cosine_similarity.default", "aten.pairwise_distance.default")
def cosine_similarity(labels: Labels, node: Node) -> list[Layers]:
    """Let two tensors meet, and reduce a dimension."""
    a, b = (labels.operand(ref) for ref in node.args[:2])
    wide = tuple(torch.broadcast_shapes(a.shape, b.shape))
    away = node.op == "aten.pairwise_distance.default"
    dim = (-1 if away else argument(node, 2, "dim", 1)) % len(wide)
    layers = take_statistics(labels, node, labels.meet(wide, [a, b], node), {dim})
    left = [layer for layer in layers if not varies(layer, dim)]
    keep = away and argument(node, 4, "keepdim", False)
    return [tuple(layer if keep else layer.squeeze(dim) for layer in left)]


@rule("aten.softmax.int", "aten._softmax.default", "aten.log_softmax.int",
      "aten._log_softmax.default")  # fmt: skip
def softmax(labels: Labels, node: Node) -> Layers:
    """Let labels pass; the sum of the exponentials is over those that are kept."""
    x = node.args[0]
    dim = argument(node, 1, "dim") % len(labels.shape(x))
    return take_statistics(labels, node, labels.of(x), {dim})


@rule("aten.cumsum.default", "aten.cumprod.default", "aten.logcumsumexp.default",
      "aten.cummax.default", "aten.cummin.default", "aten.cumsum_.default")  # fmt: skip
def along(labels: Labels, node: Node) -> list[Layers]:
    """Let other dimensions pass; the one worked along must stay whole."""
    return _stay_along(labels, node, argument(node, 1, "dim"))


@rule("aten.topk.default", "aten.sort.default", "aten.sort.stable", "aten.argsort.default",
      "aten.argsort.stable", "aten.msort.default")  # fmt: skip
def rank(labels: Labels, node: Node) -> list[Layers]:
    """Let other dimensions pass; the one that is sorted must stay whole."""
    if node.op == "aten.msort.default":
        return _stay_along(labels, node, 0)
    index = 2 if node.op == "aten.topk.default" else 1
    dim = node.kwargs.get("dim", -1)
    given = [a for a in node.args[index : index + 1] if not isinstance(a, bool)]
    return _stay_along(labels, node, given[0] if given else dim)


def _stay_along(labels: Labels, node: Node, dim: int) -> list[Layers]:
    x = node.args[0]
    dims = [dim % len(labels.shape(x))]
    layers = labels.pass_through(labels.of(x), dims, "is worked along in order", node)
    return [layers for _ in node.outputs]
