"""Tensors made on the spot.

A constant fill holds the same everywhere: it takes on any size. So every one of its dimensions gets
labels that are on no axis, and what it meets, or what is written into it later, decides what they
are. Whether the size in the model's code can follow, `sizing` finds out. Other tensors that are
made on the spot are different at each position: they have no labels, and what meets them stays.
"""

from prunella.graph import Node, Path, refs
from prunella.labels import Extent, Labels, Layers, spread
from prunella.rules._registry import resizes, rule

FILLS = {  # the operator, and which argument is the size
    "aten.zeros.default": 0,
    "aten.ones.default": 0,
    "aten.full.default": 0,
    "aten.empty.memory_format": 0,
    "aten.new_zeros.default": 1,
    "aten.new_ones.default": 1,
    "aten.new_full.default": 1,
    "aten.new_empty.default": 1,
}
_LIKE = """
    zeros_like.default ones_like.default full_like.default empty_like.default fill_.Scalar
    fill_.Tensor zero_.default fill.Scalar fill.Tensor
"""
_OTHERS = """
    arange.default arange.start arange.start_step linspace.default logspace.default eye.default
    eye.m randn.default rand.default randint.default randint.low randperm.default
    scalar_tensor.default tril_indices.default triu_indices.default hann_window.default
    hann_window.periodic hamming_window.default full.names
"""
_RANDOM = """
    randn_like.default rand_like.default randint_like.default randint_like.low_dtype
    multinomial.default normal_.default uniform_.default bernoulli_.float
    bernoulli.p random_.default random_.from exponential_.default normal.Tensor_Tensor
    normal.float_Tensor normal.Tensor_float
"""
_CHECKS = """
    _assert_tensor_metadata.default _assert_scalar.default _assert_async.default _assert_async.msg
    sym_size.int sym_numel.default sym_stride.int sym_constrain_range.default
    sym_constrain_range_for_size.default
"""


def _named(ops: str) -> list[str]:
    return [f"aten.{op}" for op in ops.split()]


@rule(*_named(_CHECKS))
def check(labels: Labels, node: Node) -> list[Layers]:
    """Look at a tensor and leave it alone."""
    del labels
    return [() for _ in node.outputs]


@rule(*FILLS)
def fill(labels: Labels, node: Node) -> Layers:
    """Make a constant, which takes on any size."""
    shape = labels.shapes[node.outputs[0]]
    return tuple(spread(labels.fresh(n), d, len(shape)) for d, n in enumerate(shape) if n > 1)


@resizes(*FILLS)
def size_of_fill(labels: Labels, node: Node) -> dict[Path, Extent]:
    """Tie the numbers in the size to the output's dimensions."""
    (output,), at = node.outputs, FILLS[node.op]
    shape = labels.shapes[output]
    sizes = node.args[at] if at < len(node.args) else ()
    return {
        (at, i): Extent(output, i, 0, shape[i]) for i, n in enumerate(sizes) if isinstance(n, int)
    }


@rule(*_named(_LIKE))
def fill_alike(labels: Labels, node: Node) -> Layers:
    """Make, or turn a tensor into, a constant of the size of another."""
    return labels.of(node.args[0])


@rule(*_named(_OTHERS))
def make(labels: Labels, node: Node) -> list[Layers]:
    """Make a tensor without labels; whatever it meets keeps its size."""
    del labels
    return [() for _ in node.outputs]


@rule(*_named(_RANDOM))
def draw(labels: Labels, node: Node) -> list[Layers]:
    """Hold in place what random numbers are drawn for: other sizes would draw others."""
    for ref in refs((node.args, node.kwargs)):
        for layer in labels.of(ref):
            labels.freeze(layer, "random numbers are drawn for it", node)
    return [() for _ in node.outputs]


@rule(
    *_named(
        "item.default _local_scalar_dense.default is_nonzero.default equal.default "
        "resolve_conj.default resolve_neg.default"  # what `.numpy()` and `.tolist()` leave behind
    )
)
def read(labels: Labels, node: Node) -> list[Layers]:
    """Hold in place what leaves the network as plain numbers, which nobody can follow."""
    for ref in refs(node.args):
        for layer in labels.of(ref):
            labels.freeze(layer, "its numbers are read by the model's own code", node)
    return [() for _ in node.outputs]
