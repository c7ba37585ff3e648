"""Norms, and softmax."""

import torch
import torch.nn.functional as F
from torch import Tensor

from prunella.onnxfiles.numbers import Operand, UnreadError, as_tensor
from prunella.onnxfiles.operators._registry import Call, Reading, reads


@reads("BatchNormalization")
def batch_norm(
    call: Call, x: Operand, scale: Operand, bias: Operand, mean: Operand, variance: Operand
) -> Tensor:
    """Normalise each channel by what was seen in training."""
    if call.get("training_mode", 0) or not call.get("spatial", 1):
        raise UnreadError("it takes statistics of the batch")
    return F.batch_norm(
        as_tensor(x),
        as_tensor(mean),
        as_tensor(variance),
        as_tensor(scale),
        as_tensor(bias),
        False,
        0.0,
        call.get("epsilon", 1e-5),
    )


@reads("InstanceNormalization")
def instance_norm(call: Call, x: Operand, scale: Operand, bias: Operand) -> Tensor:
    """Normalise each channel of each sample."""
    return F.instance_norm(
        as_tensor(x), weight=as_tensor(scale), bias=as_tensor(bias), eps=call.get("epsilon", 1e-5)
    )


@reads("LayerNormalization")
def layer_norm(call: Call, x: Operand, scale: Operand, bias: Operand = None) -> Tensor:
    """Normalise over the last dimensions."""
    value = as_tensor(x)
    if call.outputs > 1 or call.get("axis", -1) not in (-1, value.ndim - 1):
        raise UnreadError("it normalises over several dimensions, or says by how much")
    own = None if bias is None else as_tensor(bias)
    shape = (value.shape[-1],)
    return F.layer_norm(value, shape, as_tensor(scale), own, call.get("epsilon", 1e-5))


@reads("RMSNormalization", "SimplifiedLayerNormalization")
def rms_norm(call: Call, x: Operand, scale: Operand) -> Tensor:
    """Normalise the size over the last dimension."""
    value = as_tensor(x)
    if call.get("axis", -1) not in (-1, value.ndim - 1):
        raise UnreadError("it normalises over several dimensions")
    return F.rms_norm(value, (value.shape[-1],), as_tensor(scale), call.get("epsilon", 1e-5))


@reads("GroupNormalization")
def group_norm(call: Call, x: Operand, scale: Operand, bias: Operand) -> Tensor:
    """Normalise groups of channels, with a scale for each channel."""
    value, groups = as_tensor(x), call.get("num_groups")
    weight, own = as_tensor(scale), as_tensor(bias)
    if call.opset < 21:
        raise UnreadError("it has a scale for each group of channels")
    return F.group_norm(value, groups, weight, own, call.get("epsilon", 1e-5))


@reads("LRN")
def local_response(call: Call, x: Operand) -> Tensor:
    """Normalise by channels nearby."""
    size = call.get("size")
    alpha, beta, bias = call.get("alpha", 1e-4), call.get("beta", 0.75), call.get("bias", 1.0)
    if size % 2 == 0:
        raise UnreadError("it has an even size")
    return F.local_response_norm(as_tensor(x), size, alpha, beta, bias)


@reads("LpNormalization")
def lp_norm(call: Call, x: Operand) -> Tensor:
    """Divide by the norm along one dimension."""
    value, axis, p = as_tensor(x), call.get("axis", -1), call.get("p", 2)
    norm = value.abs().sum(axis, True) if p == 1 else value.square().sum(axis, True).sqrt()
    return value / torch.where(norm == 0, 1.0, norm)


def _soft(*, log: bool) -> Reading:
    function = torch.log_softmax if log else torch.softmax

    def compute(call: Call, x: Operand) -> Tensor:
        value = as_tensor(x)
        if call.opset >= 13:
            return function(value, call.get("axis", -1))
        axis = call.get("axis", 1) % value.ndim
        if axis == value.ndim - 1:
            return function(value, axis)
        if all(int(n) == 1 for n in value.shape[axis + 1 :]):  # as good as that dimension alone
            return function(value, axis)
        return function(value.flatten(axis), -1).reshape(value.shape)

    return compute


reads("Softmax")(_soft(log=False))
reads("LogSoftmax")(_soft(log=True))
