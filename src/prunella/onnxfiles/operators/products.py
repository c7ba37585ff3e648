"""Convolutions and matrix products."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prunella.onnxfiles.numbers import Operand, UnreadError, as_tensor
from prunella.onnxfiles.operators._registry import Call, reads

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def sides_of(
    call: Call, sizes: list[int], kernel: list[int], stride: list[int], dilation: list[int]
) -> list[tuple[int, int]]:
    """Return how much is put before and after each dimension of the grid."""
    n, auto = len(kernel), call.get("auto_pad", "NOTSET")
    if auto == "VALID":
        return [(0, 0)] * n
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        sides = []
        for size, k, s, d in zip(sizes, kernel, stride, dilation, strict=True):
            more = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
            small, large = more // 2, more - more // 2
            sides.append((small, large) if auto == "SAME_UPPER" else (large, small))
        return sides
    pads = [int(p) for p in call.get("pads") or [0] * 2 * n]  # plain: they are compared
    return list(zip(pads[:n], pads[n:], strict=True))


def window_of(call: Call, n: int) -> tuple[list[int], list[int]]:
    """Return stride and dilation."""
    return list(call.get("strides") or [1] * n), list(call.get("dilations") or [1] * n)


@reads("Conv")
def conv(call: Call, x: Operand, weight: Operand, bias: Operand = None) -> Tensor:
    """Convolve."""
    value, kernel = as_tensor(x), as_tensor(weight)
    n = kernel.ndim - 2
    if n not in _CONV:
        raise UnreadError(f"it convolves {n} dimensions")
    stride, dilation = window_of(call, n)
    grid, sizes = [int(k) for k in value.shape[2:]], [int(k) for k in kernel.shape[2:]]
    sides = sides_of(call, grid, sizes, stride, dilation)
    padding = [a for a, _ in sides]
    if any(a != b for a, b in sides):
        value = F.pad(value, [side for pair in reversed(sides) for side in pair])
        padding = [0] * n
    own = None if bias is None else as_tensor(bias)
    made: Tensor = _CONV[n](value, kernel, own, stride, padding, dilation, call.get("group", 1))
    return made


@reads("ConvTranspose")
def conv_transposed(call: Call, x: Operand, weight: Operand, bias: Operand = None) -> Tensor:
    """Convolve the other way round."""
    value, kernel = as_tensor(x), as_tensor(weight)
    n = kernel.ndim - 2
    if n not in _TRANSPOSED:
        raise UnreadError(f"it convolves {n} dimensions")
    stride, dilation = window_of(call, n)
    if call.get("output_shape") or call.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise UnreadError("it asks for an output of a given shape")
    sides = sides_of(call, [1] * n, [1] * n, stride, dilation)
    more = list(call.get("output_padding") or [0] * n)
    own = None if bias is None else as_tensor(bias)
    padding, cut = [a for a, _ in sides], [0] * n
    if any(a != b for a, b in sides):
        padding, cut = [min(pair) for pair in sides], [b - a for a, b in sides]
        if min(cut) < 0:
            raise UnreadError("it takes more off at the start than at the end")
    made: Tensor = _TRANSPOSED[n](
        value, kernel, own, stride, padding, more, call.get("group", 1), dilation
    )
    for d, off in enumerate(cut):
        made = made.narrow(d + 2, 0, int(made.shape[d + 2]) - off) if off else made
    return made


@reads("Gemm")
def gemm(call: Call, a: Operand, b: Operand, c: Operand = None) -> Tensor:
    """Multiply matrices and add."""
    left, right = as_tensor(a), as_tensor(b)
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    left = left.t() if call.get("transA", 0) else left
    across = bool(call.get("transB", 0))
    added: Any = None if c is None else as_tensor(c)
    if alpha == 1.0 and (added is None or (beta == 1.0 and added.ndim == 1)):
        if across:
            return F.linear(left, right, added)
        return torch.mm(left, right) if added is None else torch.addmm(added, left, right)
    made: Tensor = torch.mm(left, right.t() if across else right) * alpha
    return made if added is None else made + as_tensor(c) * beta


@reads("MatMul")
def matmul(_: Call, a: Operand, b: Operand) -> Tensor:
    """Multiply matrices, in batches."""
    return torch.matmul(as_tensor(a), as_tensor(b))


@reads("Einsum")
def einsum(call: Call, *operands: Operand) -> Tensor:
    """Multiply and sum as an equation says."""
    made: Tensor = torch.einsum(call.get("equation"), [as_tensor(x) for x in operands])
    return made
