"""Reductions: over what is not labelled they let labels pass."""

from prunella.graph import Node
from prunella.labels import Labels, Layers
from prunella.rules._registry import argument, rule

# Their second argument is the order of the norm, the third the dimensions.
_NORMS = ("aten.linalg_vector_norm.default", "aten.norm.ScalarOpt_dim")


@rule(
    *(
        f"aten.{op}.{overload}"
        for op in "mean sum amax amin max min prod var std norm logsumexp argmax any all".split()
        for overload in ("dim", "dim_IntList", "default", "int", "dim_int", "correction")
    ),
    "aten.var_mean.correction",
    *_NORMS,
)
def reduce(labels: Labels, node: Node) -> list[Layers]:
    """Drop the reduced dimensions; labels on them may not be cut.

    A mean or maximum over channels is another number when channels are gone, so what varies along
    a reduced dimension alone is frozen, and what varies along others too is cut along those.
    """
    x = node.args[0]
    ndim = len(labels.shape(x))
    dims = argument(node, 2 if node.op in _NORMS else 1, "dim")
    if dims is None:
        dims = range(ndim)
    reduced = {d % ndim for d in ((dims,) if isinstance(dims, int) else dims)} or set(range(ndim))
    layers = labels.pass_through(labels.of(x), sorted(reduced), "is reduced over", node)
    made = []
    for name in node.outputs:
        keep = len(labels.shapes[name]) == ndim
        shape = [d for d in range(ndim) if keep or d not in reduced]
        made.append(tuple(a.reshape([a.shape[d] for d in shape]) for a in layers))
    return made


@rule("aten.softmax.int", "aten._softmax.default", "aten.log_softmax.int",
      "aten._log_softmax.default", "aten.cumsum.default", "aten.cumprod.default")  # fmt: skip
def along(labels: Labels, node: Node) -> Layers:
    """Let other dimensions pass; the one worked along must stay whole."""
    x = node.args[0]
    dim = argument(node, 1, "dim") % len(labels.shape(x))
    return labels.pass_through(labels.of(x), [dim], "is normalised along", node)
