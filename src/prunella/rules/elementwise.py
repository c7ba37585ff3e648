"""Element-wise operators: labels that meet are united, with broadcasting."""

from prunella.graph import Node, Ref, refs
from prunella.labels import Labels, Layer, Layers, Operand, pad, spread
from prunella.rules._registry import argument, rule

_UNARY = """
    abs acos acosh alias asin asinh atan atanh bernoulli bitwise_not ceil celu clamp clamp_max
    clamp_min clone contiguous cos cosh deg2rad detach dropout elu erf erfc exp exp2 expm1
    feature_dropout floor frac gelu hardshrink hardsigmoid hardswish hardtanh isfinite isinf isnan
    leaky_relu lift_fresh_copy log log10 log1p log2 log_sigmoid logical_not logit mish nan_to_num
    neg positive rad2deg reciprocal relu relu6 round rrelu rsqrt selu sgn sigmoid sign silu sin
    sinc sinh softplus softshrink softsign sqrt square tan tanh tanhshrink threshold trunc
    alpha_dropout detach_ lift_fresh absolute arccos arccosh arcsin arcsinh arctan arctanh digamma
    erfinv fake_quantize_per_tensor_affine fix i0 lgamma negative signbit special_entr special_erf
    special_erfc special_erfinv special_expit special_expm1 special_log1p special_ndtr special_sinc
"""
_UNARY_OVERLOADS = ("default", "Tensor", "decimals", "Scalar")
_BINARY = """
    add sub rsub mul div true_divide pow maximum minimum fmod remainder atan2 lerp
    addcmul addcdiv eq ne lt le gt ge logical_and logical_or logical_xor bitwise_and bitwise_or
    bitwise_xor copysign fmax fmin floor_divide hypot xlogy clamp clamp_min clamp_max masked_fill
    heaviside square_ __and__ __or__ __xor__ multiply divide subtract copy clip arctan2 float_power
    greater greater_equal isclose ldexp less less_equal logaddexp logaddexp2 nextafter not_equal
    special_xlog1py special_xlogy
"""
_BINARY_OVERLOADS = (
    "Tensor Scalar Tensor_mode Scalar_mode Tensor_Tensor Tensor_Scalar self other default "
    "ScalarSelf ScalarOther Scalar_Tensor self_scalar other_scalar"
).split()


def _names(ops: str, overloads: tuple[str, ...] | list[str]) -> list[str]:
    return [f"aten.{op}{end}.{o}" for op in ops.split() for end in ("", "_") for o in overloads]


@rule(
    *_names(_BINARY, _BINARY_OVERLOADS),
    *_names(_UNARY, _UNARY_OVERLOADS),
    "aten.max.other",
    "aten.min.other",
    "aten.where.self",
    "aten.where.Scalar",
    "aten.where.ScalarSelf",
    "aten.where.ScalarOther",
    "aten.to.dtype",
    "aten.to.device",
    "aten.to.dtype_layout",
    "aten.to.other",
    "aten._to_copy.default",
    "aten.type_as.default",
    "aten.clone.default",
)
def meet(labels: Labels, node: Node) -> Layers:
    """Unite the labels of all tensor arguments."""
    operands = [ref for ref in refs((node.args, node.kwargs)) if _takes_part(node, ref)]
    return labels.meet(
        labels.shapes[node.outputs[0]], [labels.operand(ref) for ref in operands], node
    )


def _takes_part(node: Node, ref: Ref) -> bool:
    """Leave out a tensor that only lends its type or device."""
    return not (node.op in ("aten.type_as.default", "aten.to.other") and ref != node.args[0])


@rule("aten.prelu.default", "aten._prelu_kernel.default")
def prelu(labels: Labels, node: Node) -> Layers:
    """Unite the channels (dimension 1) with the slopes, where there is one for each."""
    x, weight = node.args[:2]
    shape = labels.shape(x)
    slopes = labels.of(weight)
    if slopes and len(labels.shape(weight)) == 1:
        slopes = tuple(spread(a.reshape(-1), min(1, len(shape) - 1), len(shape)) for a in slopes)
    wide = tuple(shape if i == 1 else 1 for i, shape in enumerate(shape))
    other = Operand(slopes, wide if slopes else (1,) * len(shape))
    return labels.meet(shape, [labels.operand(x), other], node)


@rule("aten.glu.default")
def glu(labels: Labels, node: Node) -> Layers:
    """Unite the two halves of the dimension that is cut in two."""
    x, (output,) = node.args[0], node.outputs
    shape = labels.shapes[output]
    dim = argument(node, 1, "dim", -1) % len(shape)
    halves = zip(*(_halves(pad(a, len(shape)), dim) for a in labels.of(x)), strict=True)
    return labels.meet(shape, [Operand(tuple(half), shape) for half in halves], node)


def _halves(layer: Layer, dim: int) -> tuple[Layer, ...]:
    return layer.chunk(2, dim) if layer.shape[dim] > 1 else (layer, layer)
