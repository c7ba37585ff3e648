"""Tensors made on the spot: constant fills take on any size, others carry no labels."""

from prunella.graph import Node
from prunella.labels import Labels, Layers
from prunella.rules._registry import rule

_FILLS = """
    zeros.default ones.default full.default empty.memory_format zeros_like.default
    ones_like.default full_like.default new_zeros.default new_ones.default new_full.default
    new_empty.default empty_like.default scalar_tensor.default fill_.Scalar zero_.default
"""
_OTHERS = """
    arange.default arange.start arange.start_step linspace.default eye.default tril.default
    triu.default bucketize.Tensor randn.default rand.default randn_like.default rand_like.default
"""


_CHECKS = """
    _assert_tensor_metadata.default _assert_scalar.default _assert_async.default _assert_async.msg
    sym_size.int sym_numel.default sym_stride.int sym_constrain_range.default
    sym_constrain_range_for_size.default
"""


@rule(*(f"aten.{op}" for op in _CHECKS.split()))
def check(labels: Labels, node: Node) -> list[Layers]:
    """Look at a tensor and leave it alone."""
    del labels
    return [() for _ in node.outputs]


@rule(*(f"aten.{op}" for op in _FILLS.split()))
def fill(labels: Labels, node: Node) -> Layers:
    """Make a constant, which adapts to whatever it meets."""
    labels.fills.add(node.outputs[0])
    return ()


@rule(*(f"aten.{op}" for op in _OTHERS.split()))
def make(labels: Labels, node: Node) -> list[Layers]:
    """Make a tensor without labels; whatever it meets keeps its size."""
    del labels
    return [() for _ in node.outputs]
