"""Borrow a model for a moment and hand it back in the mode it came in; copy one as it is."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put `model` in evaluation mode; restore every module's own flag on leaving."""
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield model
    finally:
        for module, training in flags.items():
            module.training = training


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Keep torch's attention from calling one operator that hides its products.

    It does so in evaluation mode, but not with an odd number of heads, say.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def forget(model: nn.Module) -> None:
    """Empty what modules keep of earlier runs: tensors in other sizes, or of another precision."""
    for module in model.modules():
        for name, value in vars(module).items():
            if type(value) is dict and "cache" in name and not name.startswith("_"):
                value.clear()


def copied(model: nn.Module, instead: Mapping[int, Tensor] | None = None) -> nn.Module:
    """Copy a model, also one that kept what it computed with gradients, which torch refuses.

    Args:
        model: Any module.
        instead: By a tensor's `id`, what the copy has in its place.
    """
    memo: dict[int, Tensor] = dict(instead or {})
    for module in model.modules():
        for value in vars(module).values():
            for item in _items(value):
                if isinstance(item, Tensor) and item.grad_fn is not None:
                    memo[id(item)] = item.detach().clone()
    return copy.deepcopy(model, memo)


def _items(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value
    else:
        yield value
