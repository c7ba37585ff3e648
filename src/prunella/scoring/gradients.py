"""How outputs, or a loss, change when a channel fades: one derivative per channel and pass."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunella.calibration import Calibration, Loss
from prunella.errors import ConfigError
from prunella.model.examples import Arguments
from prunella.model.modes import evaluating
from prunella.model.outputs import tensors_in
from prunella.plan import Axis, Groups
from prunella.scoring.rows import sums_of

PASSES = 256
"""So many backward passes without labels, at least: a variance from 256 draws is within 9%."""


class NoGradientError(ConfigError):
    """Nothing flows back from the model's outputs to its weights."""


def gates_of(model: nn.Module, groups: Groups, data: Calibration) -> dict[Axis, Tensor]:
    """Return the derivative with respect to a factor (a gate) on each position of every axis.

    It is the sum over the position's slice of weight times derivative of the weight, and so exact
    for the slice as a whole, `[passes, positions]`. What no pass reached is left out.

    With labels every batch is a pass, and what is derived is its loss. Without, it is a random
    direction of the outputs: independent signs, each tensor divided by its own spread. The mean
    square of such derivatives is how much the outputs' squared distance from the dense model's
    grows, to second order (Gauss-Newton); the first order is zero, as the dense model is nearest to
    itself.

    Args:
        model: The model; its gradients, mode, statistics and the random numbers stay as they are.
        groups: Its groups.
        data: Batches. Without labels they are taken apart, where they can be, into as many passes
            as it takes.

    Raises:
        ConfigError: The model computes without gradients.
    """
    tensors = dict(model.named_parameters())
    axes = {axis: None for group in groups for axis in group.axes if axis.tensor in tensors}
    names = sorted({axis.tensor for axis in axes})
    if not names:
        return {}
    found: dict[Axis, list[Tensor]] = defaultdict(list)
    with _differentiable(model, [tensors[name] for name in names]) as wanted:
        for value in _passes(model, data):
            slopes = torch.autograd.grad(value, wanted, retain_graph=True, allow_unused=True)
            products = {
                name: tensor.detach().float() * slope.float()
                for name, tensor, slope in zip(names, wanted, slopes, strict=True)
                if slope is not None
            }
            for axis in axes:
                product = products.get(axis.tensor)
                zero = torch.zeros(groups.axes[axis].size, device=value.device)
                found[axis].append(zero if product is None else sums_of(product, groups, axis))
    gates = {axis: torch.stack(rows) for axis, rows in found.items()}
    return {axis: each for axis, each in gates.items() if each.any()}


@contextmanager
def _differentiable(model: nn.Module, tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Let gradients flow to some parameters for a while, in evaluation mode."""
    if any(tensor.is_inference() for tensor in tensors):
        raise NoGradientError(
            f"the weights of `{type(model).__name__}` were made under torch.inference_mode(), so "
            "nothing has a gradient: make or load the model outside of it, or use a criterion that "
            'needs no gradients, such as "wanda" or "reading"'
        )
    flags = [tensor.requires_grad for tensor in tensors]
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            evaluating(model),
        ):
            for tensor in tensors:
                tensor.requires_grad_(True)
            yield tensors
    finally:
        for tensor, flag in zip(tensors, flags, strict=True):
            tensor.requires_grad_(flag)


def _passes(model: nn.Module, data: Calibration) -> Iterator[Tensor]:
    """Yield scalars whose derivatives are asked for."""
    if data.loss is not None:
        for index, (args, kwargs) in enumerate(data.batches):
            value = _loss(data.loss, model(*args, **kwargs), index)
            _check(model, [value])
            yield value
        return
    generator = torch.Generator().manual_seed(0)
    wanted = -(-PASSES // len(data.batches))
    scales = _scales(model, data.batches[0])
    for batch in data.batches:
        parts = _apart(batch, wanted)
        for args, kwargs in parts:
            outputs = _floating(model(*args, **kwargs))
            _check(model, outputs)
            for _ in range(-(-wanted // len(parts))):
                pairs = zip(outputs, scales, strict=True)
                yield torch.stack([_along_signs(t, generator) / scale for t, scale in pairs]).sum()


def _loss(loss: Loss, outputs: Any, index: int) -> Tensor:
    try:
        return loss(outputs, index)
    except RuntimeError as error:
        if "nference tensor" not in str(error):
            raise
        raise ConfigError(
            f"the loss of batch {index} of the calibration data has no gradient: it uses tensors "
            "made under torch.inference_mode(). Make the labels outside of it, or clone them there"
        ) from error


def _floating(outputs: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_in(outputs) if tensor.is_floating_point()]


@torch.no_grad()
def _scales(model: nn.Module, batch: Arguments) -> list[float]:
    """Return what to divide each output by, so that all tensors have equal weight."""
    args, kwargs = batch
    outputs = [tensor.float() for tensor in _floating(model(*args, **kwargs))]
    sizes = [float(tensor.std(correction=0)) * tensor.numel() ** 0.5 for tensor in outputs]
    return [size if size > 0 else 1.0 for size in sizes]


def _along_signs(output: Tensor, generator: torch.Generator) -> Tensor:
    """Project an output on random signs."""
    signs = torch.randint(0, 2, output.shape, generator=generator).to(output.device) * 2.0 - 1
    projected: Tensor = (output.float() * signs).sum()
    return projected


def _apart(batch: Arguments, pieces: int) -> list[Arguments]:
    """Take a batch apart along the dimension that all its tensors begin with, if there is one."""
    leaves, spec = pytree.tree_flatten(batch)
    sizes = {leaf.shape[:1] for leaf in leaves if isinstance(leaf, Tensor)}
    if len(sizes) != 1 or not (size := sizes.pop()):
        return [batch]
    count = min(pieces, size[0])

    def piece(leaf: Any, index: int) -> Any:
        return leaf.tensor_split(count)[index] if isinstance(leaf, Tensor) else leaf

    return [
        pytree.tree_unflatten([piece(leaf, index) for leaf in leaves], spec)
        for index in range(max(count, 1))
    ]


def _check(model: nn.Module, outputs: Iterable[Tensor]) -> list[Tensor]:
    flowing = [tensor for tensor in outputs if tensor.requires_grad]
    if not flowing:
        raise NoGradientError(
            f"nothing flows back from the outputs of `{type(model).__name__}` to its weights: it "
            "computes under torch.no_grad() or inference_mode(), or detaches what it returns. Take "
            'that out, or use a criterion that needs no gradients, such as "wanda" or "reading"'
        )
    return flowing
