"""Norms with statistics of their own per channel: labels pass, the affine parts are united."""

from prunella.graph import Node, Ref
from prunella.labels import Labels, Layers, Operand, spread
from prunella.rules._registry import rule


@rule("aten.batch_norm.default", "aten.native_batch_norm.default", "aten.instance_norm.default",
      "aten._native_batch_norm_legit_no_training.default")  # fmt: skip
def batch_norm(labels: Labels, node: Node) -> Layers:
    """Unite the channels (dimension 1) with weight, bias, running mean and variance."""
    x, *affine = node.args[:5]
    shape = labels.shape(x)
    wide = tuple(n if d == 1 else 1 for d, n in enumerate(shape))
    operands = [labels.operand(x)]
    for ref in affine:
        if isinstance(ref, Ref):
            layers = tuple(spread(a.reshape(-1), 1, len(shape)) for a in labels.of(ref))
            operands.append(Operand(layers, wide))
    return labels.meet(shape, operands, node)
