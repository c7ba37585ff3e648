"""The certificate finds what is wrong, and leaves nothing behind."""

import pytest
import torch
from torch import nn

import prunella
from prunella.errors import CertificateError

IMAGE = torch.randn(2, 3, 8, 8)


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Sigmoid(), nn.Conv2d(8, 4, 3)
    ).eval()


def test_a_wrong_value_of_the_pruned_model_is_found() -> None:
    model = net()
    result = prunella.prune(model, IMAGE, ratio=0.5)
    assert prunella.certify(model, result.model, result.plan, (IMAGE,)).error < 1e-12
    with torch.no_grad():
        result.model[3].weight[0, 0, 0, 0] += 1
    with pytest.raises(CertificateError, match="differs from the masked one"):
        prunella.certify(model, result.model, result.plan, (IMAGE,))


def test_the_callers_random_numbers_go_on_as_before() -> None:
    model = net()
    before = torch.get_rng_state()
    prunella.prune(model, IMAGE, ratio=0.5)
    assert torch.equal(torch.get_rng_state(), before)
