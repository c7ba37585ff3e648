"""Spectral norms of what is kept: the directions that they remember are looked for anew.

A weight that is divided by its largest stretch remembers between runs the directions u and v of
length one with `u . W v` as large as it gets, and training follows them, a step at a time. What is
left of u and v behind a cut is shorter, and no longer where `W` stretches most: the norm would be
too small, and the weight too large by as much, until some steps of training have put it right. As
with all statistics over channels, it is over those that are kept from the beginning.
"""

from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm

from prunella.model.structure import canonical_names

_STEPS = 30  # twice what torch begins with


class SpectralEstimate(NamedTuple):
    """The tensors of a spectral norm, by name; `dim` of the weight counts the rows."""

    weight: str
    left: str
    right: str
    dim: int


def estimates_cut(model: nn.Module, cut: Container[str]) -> list[SpectralEstimate]:
    """List the spectral norms, in either of torch's two forms, one of whose tensors is cut."""
    names = canonical_names(model)
    found: list[SpectralEstimate] = []
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, ParametrizationList) and isinstance(module[0], _SpectralNorm):
            own = ("original", "0._u", "0._v")
            found += _named([prefix + name for name in own], module[0].dim, names)
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                own = (f"{hook.name}_orig", f"{hook.name}_u", f"{hook.name}_v")
                found += _named([prefix + name for name in own], hook.dim, names)
    return [each for each in found if any(name in cut for name in each[:3])]


def _named(own: Sequence[str], dim: int, names: Mapping[str, str]) -> list[SpectralEstimate]:
    """Name the tensors as `tensors` does; of a vector, which has no directions, there is none."""
    if any(name not in names for name in own):
        return []
    weight, left, right = (names[name] for name in own)
    return [SpectralEstimate(weight, left, right, dim)]


@torch.no_grad()
def settle(found: Mapping[str, Tensor], estimates: Sequence[SpectralEstimate]) -> None:
    """Turn the directions, in place, to where the weights stretch most as they now are."""
    for weight, left, right, dim in estimates:
        matrix = found[weight].movedim(dim, 0).flatten(1)
        for _ in range(_STEPS):
            found[left].copy_(F.normalize(matrix @ found[right], dim=0))
            found[right].copy_(F.normalize(matrix.mH @ found[left], dim=0))
