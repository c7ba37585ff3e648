"""Random weights that pass a signal on and hide no fault behind zeros, ones or tiny factors."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from benchmarks.zoo.network import Draw

SAMPLES = 2
"""How many samples statistics are measured on: the fewest of which every channel has a spread."""


@torch.no_grad()
def randomise(model: nn.Module, inputs: Draw) -> nn.Module:
    """Make every tensor of a freshly built model differ from channel to channel; in place.

    Convolutions and linear layers get variance-preserving weights. What a library starts with as a
    constant (norms' affines, biases, layer scales, positions, last layers at zero) is drawn.
    Batch-norm statistics are measured on random inputs and then moved at random.

    Args:
        model: As its library builds it; what does not require gradients is left as it is.
        inputs: What it is called with.

    Returns:
        The model, in evaluation mode.
    """
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter.is_floating_point():
                _draw(module, name, parameter)
        if module._buffers.get("running_var") is not None and not isinstance(module, _BatchNorm):
            _draw_frozen_norm(module)
    model.eval()
    _measure(model, inputs)
    return model


def _draw(module: nn.Module, name: str, tensor: Tensor) -> None:
    fan = _fan_in(module, name, tensor)
    if fan:
        gain = 2.0 if isinstance(module, _ConvNd) else 1.0  # what follows a convolution is a ReLU
        tensor.normal_(0, (gain / fan) ** 0.5)
    elif isinstance(module, nn.Embedding):
        tensor.normal_(0, 0.5)
    elif tensor.numel() and bool((tensor == tensor.view(-1)[0]).all()):
        _vary(name, tensor, float(tensor.view(-1)[0]))


def _fan_in(module: nn.Module, name: str, tensor: Tensor) -> int:
    if name != "weight" or tensor.ndim < 2:
        return 0
    if isinstance(module, _ConvTransposeNd):
        return tensor.shape[0] // module.groups * tensor[0, 0].numel()
    if isinstance(module, _ConvNd | nn.Linear):
        return tensor[0].numel()
    return tensor.shape[0] if type(module).__name__ == "Conv1D" else 0  # transformers' own layer


def _vary(name: str, tensor: Tensor, constant: float) -> None:
    """Draw in the place of a constant something that keeps its kind: a shift or a factor."""
    if "bias" in name:
        tensor.uniform_(-0.1, 0.1).add_(constant)
    elif constant == 0:
        tensor.uniform_(-0.3, 0.3)
    elif abs(constant) <= 1:  # a factor; layer scales start at 1e-6, which would hide a branch
        tensor.uniform_(0.5, 1.5)
    else:
        tensor.uniform_(0.8, 1.2).mul_(constant)


def _draw_frozen_norm(module: nn.Module) -> None:
    """Draw the buffers of a batch norm that is not torch's (a frozen one)."""
    for name, low, high in (
        ("weight", 0.5, 1.5),
        ("bias", -0.5, 0.5),
        ("running_mean", -0.5, 0.5),
        ("running_var", 0.5, 1.5),
    ):
        if name in module._buffers:
            module._buffers[name].uniform_(low, high)


def _measure(model: nn.Module, inputs: Draw) -> None:
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_var is not None
    ]
    momenta = [module.momentum for module in norms]
    for module in norms:
        module.momentum = 1.0
        if module.affine:
            module.weight.uniform_(0.5, 1.5)
            module.bias.uniform_(-0.5, 0.5)
        module.train()
    args, kwargs = inputs(SAMPLES)
    if norms:
        model(*args, **kwargs)
    for module, momentum in zip(norms, momenta, strict=True):
        module.eval()
        module.momentum = momentum
        spread = module.running_var.sqrt()
        module.running_mean += 0.2 * spread * torch.randn_like(spread)
        module.running_var *= torch.empty_like(spread).uniform_(0.7, 1.4)
        module.running_var += 1e-3
