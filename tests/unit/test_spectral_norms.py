"""Spectral norms: the largest stretch of what is kept, from the cut on, not only once trained."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import prunella
from prunella.errors import CertificateError
from prunella.masking import zeroed
from tests import oracle

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NORMS = {"parametrization": spectral_norm, "hook": torch.nn.utils.spectral_norm}


def critic(normed: Callable[[nn.Module], nn.Module]) -> nn.Sequential:
    """Every weight divided by its largest singular value, as a trained critic of a GAN has it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        normed(nn.Conv2d(3, 16, 3)),
        nn.LeakyReLU(0.1),
        normed(nn.ConvTranspose2d(16, 24, 3)),
        nn.LeakyReLU(0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        normed(nn.Linear(24, 16)),
        normed(nn.Linear(16, 1)),
    )
    with torch.no_grad():
        for _ in range(100):
            model.train()(X)
    return model.eval()


def stretches(model: nn.Module, x: Tensor = X) -> list[float]:
    """Return the largest singular value of every weight that the model computed with."""
    with torch.no_grad():
        model(x)
    found = []
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            rows = 1 if isinstance(module, nn.ConvTranspose2d) else 0
            weight = module.weight.detach().movedim(rows, 0).flatten(1)
            found.append(torch.linalg.matrix_norm(weight, 2).item())
    return found


@pytest.mark.parametrize("calibration", [None, [X]])
@pytest.mark.parametrize("name", NORMS)
def test_a_cut_weight_is_divided_by_its_own_spectral_norm(name: str, calibration: Any) -> None:
    model = critic(NORMS[name])
    result = prunella.prune(model, X, ratio=0.5, calibration=calibration)
    assert len(result.plan.channels) == 3
    assert max(abs(found - 1) for found in stretches(result.model)) < 0.02
    masked = prunella.mask(model, result.plan)
    if calibration is None:
        wanted = oracle.outputs(masked, (X,), {})
        assert oracle.difference(oracle.outputs(result.model, (X,), {}), wanted) <= 1e-5
    assert max(abs(found - 1) for found in stretches(masked)) < 0.02
    before = oracle.outputs(result.model, (X,), {})
    after = oracle.outputs(result.model.train(), (X,), {})  # which looks for it once more
    assert oracle.difference(after, before) < 0.05


@pytest.mark.parametrize("name", NORMS)
def test_the_rewritten_graph_has_the_same_spectral_norms(name: str) -> None:
    model = critic(NORMS[name])
    ours, graph = (prunella.prune(model, X, ratio=0.5, form=form) for form in ("class", "graph"))
    wanted = oracle.outputs(ours.model, (X,), {})
    assert oracle.difference(oracle.outputs(graph.model, (X,), {}), wanted) <= 1e-5


@pytest.mark.parametrize("name", NORMS)
def test_while_channels_are_zero_the_spectral_norm_is_that_of_the_others(name: str) -> None:
    model = critic(NORMS[name])
    groups = prunella.couple(prunella.trace(model, X))
    before = oracle.state(model)
    group = groups.prunable[0]
    with zeroed(model, groups, {group.name: list(range(group.channels // 2))}):
        assert max(abs(found - 1) for found in stretches(model)) < 0.02
    assert oracle.unchanged(model, before)


def test_directions_that_were_not_looked_for_anew_are_no_proof() -> None:
    model = critic(spectral_norm)
    result = prunella.prune(model, X, ratio=0.5)
    small = result.model.get_submodule("2.parametrizations.weight.0")
    kept = list(result.plan.kept["2.parametrizations.weight.0._u"][0])
    small._u.copy_(model[2].parametrizations.weight[0]._u[kept])
    with pytest.raises(CertificateError, match="differs from the masked one"):
        prunella.certify(model, result.model, result.plan, (X,))
