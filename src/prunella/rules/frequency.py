"""Fourier transforms and complex numbers."""

from prunella.graph import Node
from prunella.labels import Labels, Layers
from prunella.rules._registry import argument, rule

_ONE = [f"aten.fft_{name}.default" for name in "fft ifft rfft irfft hfft ihfft".split()]
_TWO = [f"aten.fft_{name}2.default" for name in "fft ifft rfft irfft hfft ihfft".split()]
_MANY = [f"aten.fft_{name}n.default" for name in "fft ifft rfft irfft hfft ihfft".split()]


@rule(*_ONE, *_TWO, *_MANY, "aten.fft_fftshift.default", "aten.fft_ifftshift.default")
def transform(labels: Labels, node: Node) -> Layers:
    """Transform some dimensions as a whole; the others pass."""
    x = node.args[0]
    ndim = len(labels.shape(x))
    default = -1 if node.op in _ONE else (-2, -1) if node.op in _TWO else None
    dims = argument(node, 1 if "shift" in node.op else 2, "dim", default)
    if dims is None:
        dims = range(ndim)
    along = [d % ndim for d in ((dims,) if isinstance(dims, int) else dims)]
    return labels.pass_through(labels.of(x), along, "is transformed to frequencies", node)


@rule("aten.view_as_complex.default")
def pair(labels: Labels, node: Node) -> Layers:
    """Take the last dimension, of size two, as one complex number."""
    return tuple(layer.squeeze(-1) for layer in _parts(labels, node))


def _parts(labels: Labels, node: Node) -> Layers:
    x = node.args[0]
    last = len(labels.shape(x)) - 1
    return labels.pass_through(labels.of(x), [last], "is a real and an imaginary part", node)


@rule("aten.view_as_real.default")
def unpair(labels: Labels, node: Node) -> Layers:
    """Add a dimension for the real and the imaginary part."""
    return tuple(layer.unsqueeze(-1) for layer in labels.of(node.args[0]))


@rule(*(f"aten.{name}.default" for name in "real imag conj _conj _conj_physical angle".split()))
def part(labels: Labels, node: Node) -> Layers:
    """Take a part of every number."""
    return labels.of(node.args[0])


@rule("aten.complex.default", "aten.polar.default")
def combine(labels: Labels, node: Node) -> Layers:
    """Make complex numbers of two tensors, which meet."""
    operands = [labels.operand(ref) for ref in node.args[:2]]
    return labels.meet(labels.shapes[node.outputs[0]], operands, node)
