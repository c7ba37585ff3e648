"""Element by element: activations, arithmetic, comparisons."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prunella.onnxfiles.numbers import Host, Operand, UnreadError, as_tensor, numbers
from prunella.onnxfiles.operators._registry import OPERATORS, Call, optional, reads

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin,
    "Asinh": torch.asinh, "Atan": torch.atan, "Atanh": torch.atanh, "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil, "Cos": torch.cos, "Cosh": torch.cosh, "Erf": torch.erf, "Exp": torch.exp,
    "Floor": torch.floor, "IsNaN": torch.isnan, "Log": torch.log, "Neg": torch.neg,
    "Not": torch.logical_not, "Reciprocal": torch.reciprocal, "Relu": torch.relu,
    "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin,
    "Sinh": torch.sinh, "Softsign": F.softsign, "Sqrt": torch.sqrt, "Tan": torch.tan,
    "Tanh": torch.tanh, "Softplus": F.softplus, "Mish": F.mish, "HardSwish": F.hardswish,
}  # fmt: skip


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[Call, Operand], Tensor]:
    return lambda _, x: function(as_tensor(x))


for _name, _function in _UNARY.items():
    OPERATORS[_name] = _unary(_function)


def _beside(a: Operand, b: Operand) -> tuple[Any, Any]:
    """Return two operands; a single number beside a tensor as a plain one."""
    if isinstance(a, Tensor) and isinstance(b, Host) and _fits(b, a):
        return a, b.values[0]
    if isinstance(b, Tensor) and isinstance(a, Host) and _fits(a, b):
        return a.values[0], b
    return as_tensor(a), as_tensor(b)


def _fits(number: Host, x: Tensor) -> bool:
    return (
        number.scalar
        and len(number.shape) <= x.ndim
        and number.dtype.is_floating_point == x.dtype.is_floating_point
        and number.dtype != torch.bool
    )


def _divide(a: Any, b: Any) -> Tensor:
    whole = not any(isinstance(v, Tensor) and v.is_floating_point() for v in (a, b))
    return torch.div(a, b, rounding_mode="trunc") if whole else torch.div(a, b)


_BINARY: dict[str, Callable[[Any, Any], Tensor]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": _divide,
}  # fmt: skip


def _binary(name: str) -> Callable[[Call, Operand, Operand], Tensor]:
    def compute(_: Call, a: Operand, b: Operand) -> Tensor:
        left, right = _beside(a, b)
        if not isinstance(left, Tensor):  # torch's functions take a number in second place only
            if name in ("Add", "Mul"):
                left, right = right, left
            elif name == "Sub":
                return torch.rsub(right, left)
            else:
                left = as_tensor(a).to(right.dtype)
        return _BINARY[name](left, right)

    return compute


for _name in _BINARY:
    OPERATORS[_name] = _binary(_name)

_COMPARE: dict[str, Callable[[Any, Any], Tensor]] = {
    "Equal": torch.eq, "Greater": torch.gt, "Less": torch.lt, "GreaterOrEqual": torch.ge,
    "LessOrEqual": torch.le, "And": torch.logical_and, "Or": torch.logical_or,
    "Xor": torch.logical_xor,
}  # fmt: skip


def _comparison(function: Callable[[Any, Any], Tensor]) -> Callable[..., Tensor]:
    return lambda _, a, b: function(as_tensor(a), as_tensor(b))


for _name, _compare in _COMPARE.items():
    OPERATORS[_name] = _comparison(_compare)


@reads("Pow")
def power(_: Call, x: Operand, exponent: Operand) -> Tensor:
    """Raise to a power; a single number stays one, so that nobody moves it."""
    base = as_tensor(x)
    if isinstance(exponent, Host) and exponent.scalar:
        return torch.pow(base, exponent.values[0]).to(base.dtype)
    made = torch.pow(base, as_tensor(exponent))
    return made if base.is_floating_point() else made.to(base.dtype)


@reads("Mod")
def modulo(call: Call, x: Operand, divisor: Operand) -> Tensor:
    """Take the remainder."""
    function = torch.fmod if call.get("fmod", 0) else torch.remainder
    return function(as_tensor(x), as_tensor(divisor))


def _folding(name: str) -> Callable[..., Tensor]:
    step: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "Min": torch.minimum, "Max": torch.maximum, "Sum": torch.add, "Mean": torch.add,
    }  # fmt: skip

    def fold(_: Call, *operands: Operand) -> Tensor:
        made, *rest = map(as_tensor, operands)
        for other in rest:
            made = step[name](made, other)
        return made / len(operands) if name == "Mean" else made

    return fold


for _name in ("Min", "Max", "Sum", "Mean"):
    OPERATORS[_name] = _folding(_name)


@reads("Identity")
def identity(_: Call, x: Operand) -> Tensor:
    """Return what comes in."""
    return as_tensor(x)


@reads("Dropout")
def dropout(call: Call, x: Operand, *rest: Operand) -> Tensor | tuple[Tensor, ...]:
    """Return what comes in: nothing is dropped in evaluation."""
    same, training = as_tensor(x), optional(rest, 1)
    if training is not None and numbers(training, "mode")[0]:
        raise UnreadError("it drops in evaluation too")
    if call.outputs > 1:
        return same, torch.ones_like(same, dtype=torch.bool)
    return same


@reads("Cast")
def cast(call: Call, x: Operand) -> Tensor:
    """Change the type."""
    if call.get("dtype") is None:
        raise UnreadError("torch lacks the type")
    return as_tensor(x).to(call.get("dtype"))


@reads("CastLike")
def cast_like(_: Call, x: Operand, other: Operand) -> Tensor:
    """Take on the type of another tensor."""
    return as_tensor(x).to(as_tensor(other).dtype)


@reads("Clip")
def clip(call: Call, x: Operand, *bounds: Operand) -> Tensor:
    """Keep within bounds, which were attributes up to opset 6."""
    low, high = (
        [call.get("min"), call.get("max")]
        if call.opset < 11
        else [_number(optional(bounds, i)) for i in (0, 1)]
    )
    if low is None and high is None:
        return as_tensor(x)
    if isinstance(low, float) and isinstance(high, float) and (low, high) == (0.0, 6.0):
        return F.relu6(as_tensor(x))
    made: Tensor = torch.clamp(as_tensor(x), low, high)
    return made


def _number(bound: Operand) -> Any:
    return None if bound is None else numbers(bound, "bound")[0]


@reads("LeakyRelu")
def leaky_relu(call: Call, x: Operand) -> Tensor:
    """Let a share of what is negative pass."""
    return F.leaky_relu(as_tensor(x), call.get("alpha", 0.01))


@reads("PRelu")
def prelu(_: Call, x: Operand, slope: Operand) -> Tensor:
    """Let a share of what is negative pass, another one for each channel."""
    value, slopes = as_tensor(x), as_tensor(slope)
    per_channel = value.ndim > 1 and slopes.numel() == slopes.shape[0]
    if slopes.numel() == 1 or (per_channel and slopes.ndim == value.ndim - 1):
        return F.prelu(value, slopes.reshape(-1))
    return torch.relu(value) - slopes * torch.relu(-value)


@reads("Elu")
def elu(call: Call, x: Operand) -> Tensor:
    """Bend what is negative."""
    return F.elu(as_tensor(x), call.get("alpha", 1.0))


@reads("Celu")
def celu(call: Call, x: Operand) -> Tensor:
    """Bend what is negative."""
    return F.celu(as_tensor(x), call.get("alpha", 1.0))


@reads("Selu")
def selu(call: Call, x: Operand) -> Tensor:
    """Bend what is negative, and scale."""
    alpha, gamma = call.get("alpha", 1.6732631921768188), call.get("gamma", 1.0507010221481323)
    return torch.mul(F.elu(as_tensor(x), alpha), gamma)


@reads("HardSigmoid")
def hard_sigmoid(call: Call, x: Operand) -> Tensor:
    """Bend a straight line at 0 and 1."""
    alpha, beta = call.get("alpha", 0.2), call.get("beta", 0.5)
    return torch.clamp(as_tensor(x) * alpha + beta, 0.0, 1.0)


@reads("ThresholdedRelu")
def thresholded(call: Call, x: Operand) -> Tensor:
    """Let pass what is over a threshold."""
    return F.threshold(as_tensor(x), call.get("alpha", 1.0), 0.0)


@reads("Gelu")
def gelu(call: Call, x: Operand) -> Tensor:
    """Weigh by the normal distribution."""
    return F.gelu(as_tensor(x), approximate=call.get("approximate", "none"))


@reads("Swish")
def swish(call: Call, x: Operand) -> Tensor:
    """Weigh by the sigmoid."""
    value, alpha = as_tensor(x), call.get("alpha", 1.0)
    return F.silu(value) if alpha == 1.0 else value * torch.sigmoid(alpha * value)


@reads("IsInf")
def is_inf(call: Call, x: Operand) -> Tensor:
    """Tell what is infinite, on one side or both."""
    value, up, down = as_tensor(x), call.get("detect_positive", 1), call.get("detect_negative", 1)
    found = torch.isinf(value)
    if up and down:
        return found
    return found & (value > 0 if up else value < 0) & bool(up or down)


@reads("Where")
def where(_: Call, condition: Operand, yes: Operand, no: Operand) -> Tensor:
    """Choose element by element."""
    return torch.where(as_tensor(condition), as_tensor(yes), as_tensor(no))
