"""Attention in one operator: two products with a softmax between them."""

from dataclasses import replace

from prunella.graph import Node, Ref
from prunella.labels import Labels, Layers, Operand, varies
from prunella.rules._registry import argument, rule
from prunella.rules.products import Factor, factor, multiply
from prunella.rules.reduction import take_statistics


@rule("aten.scaled_dot_product_attention.default")
def attend(labels: Labels, node: Node) -> Layers:
    """Multiply queries `[.., n, d]` with keys `[.., m, d]`, then their softmax with values.

    Heads are cut whole, or inside. Of a single head, head_dim may be cut. The scale stays.
    """
    batch = tuple(range(2 - len(labels.shapes[node.outputs[0]]), 0))

    def named(ref: Ref, *last: str) -> Factor:
        return factor(labels, ref, (*batch[len(batch) + 2 - len(labels.shape(ref)) :], *last))

    queries, keys, values = node.args[:3]
    query, key = named(queries, "query", "width"), named(keys, "key", "width")
    value = named(values, "key", "value")
    if argument(node, 7, "enable_gqa", False):
        key, value = (_repeat(part, query.operand.shape[-3]) for part in (key, value))
    made = multiply(labels, node, [query, key], (*batch, "query", "key"), count=True)
    scores, mask = made.operand, argument(node, 3, "attn_mask")
    layers = scores.layers
    if isinstance(mask, Ref):
        layers = labels.meet(scores.shape, [scores, labels.operand(mask)], node)
    layers = take_statistics(labels, node, layers, {len(scores.shape) - 1})
    weights = replace(made, operand=Operand(layers, scores.shape))
    result = multiply(labels, node, [weights, value], (*batch, "query", "value"), count=True)
    return result.operand.layers


def _repeat(part: Factor, heads: int) -> Factor:
    """Repeat key or value heads for the query heads that share them."""
    *batch, found, rows, columns = part.operand.shape
    if found == 1:
        return part  # broadcasting does it
    dim = len(batch)
    layers = tuple(
        a.repeat_interleave(heads // found, dim) if varies(a, dim) else a
        for a in part.operand.layers
    )
    return replace(part, operand=Operand(layers, (*batch, heads, rows, columns)))
