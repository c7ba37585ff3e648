"""Pooling over windows, and over all there is."""

import torch
import torch.nn.functional as F
from torch import Tensor

from prunella.onnxfiles.numbers import Operand, UnreadError, as_tensor
from prunella.onnxfiles.operators._registry import Call, reads
from prunella.onnxfiles.operators.products import sides_of, window_of

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MEAN = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@reads("MaxPool")
def max_pool(call: Call, x: Operand) -> Tensor:
    """Take the largest of each window."""
    if call.outputs > 1:
        raise UnreadError("it says where the largest element was")
    value, kernel = as_tensor(x), list(call.get("kernel_shape"))
    n = len(kernel)
    stride, dilation = window_of(call, n)
    sides = sides_of(call, [int(k) for k in value.shape[2:]], kernel, stride, dilation)
    padding = [a for a, _ in sides]
    if any(a != b or 2 * a > k for (a, b), k in zip(sides, kernel, strict=True)):
        flat = [side for pair in reversed(sides) for side in pair]
        value, padding = F.pad(value, flat, value=float("-inf")), [0] * n
    return _MAX[n](value, kernel, stride, padding, dilation, bool(call.get("ceil_mode", 0)))


@reads("AveragePool")
def average_pool(call: Call, x: Operand) -> Tensor:
    """Take the mean of each window."""
    value, kernel = as_tensor(x), list(call.get("kernel_shape"))
    n = len(kernel)
    stride, dilation = window_of(call, n)
    sides = sides_of(call, [int(k) for k in value.shape[2:]], kernel, stride, dilation)
    counted, ceil = bool(call.get("count_include_pad", 0)), bool(call.get("ceil_mode", 0))
    padding = [a for a, _ in sides]
    if any(d > 1 for d in dilation):
        raise UnreadError("its window has gaps")
    if any(a != b for a, b in sides):
        if not counted or ceil:
            raise UnreadError("it pads one side more than the other, and leaves that out of means")
        value = F.pad(value, [side for pair in reversed(sides) for side in pair])
        padding = [0] * n
    return _MEAN[n](value, kernel, stride, padding, ceil, counted)


@reads("GlobalAveragePool")
def global_average(_: Call, x: Operand) -> Tensor:
    """Take the mean over the grid."""
    value = as_tensor(x)
    return value.mean(tuple(range(2, value.ndim)), keepdim=True)


@reads("GlobalMaxPool")
def global_max(_: Call, x: Operand) -> Tensor:
    """Take the largest over the grid."""
    value = as_tensor(x)
    return torch.amax(value, tuple(range(2, value.ndim)), keepdim=True)
