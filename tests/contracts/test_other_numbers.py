"""Weights and buffers that are no real numbers have channels too: complex ones, and masks."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunella
from tests.models import randomize

WIDTH = 12


class Spectral(nn.Module):
    """A layer of a Fourier neural operator: complex weights mix the channels of low frequencies."""

    def __init__(self, width: int, modes: int = 3) -> None:
        super().__init__()
        self.width, self.modes = width, modes
        self.weight = nn.Parameter(0.1 * torch.randn(width, width, modes, dtype=torch.cfloat))
        self.around = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = torch.fft.rfft(x)
        made = torch.zeros(len(x), self.width, found.shape[-1], dtype=found.dtype, device=x.device)
        low = found[..., : self.modes]
        made[..., : self.modes] = torch.einsum("bim,iom->bom", low, self.weight)
        return F.gelu(torch.fft.irfft(made, n=x.shape[-1]) + self.around(x))


class Masked(nn.Module):
    """Connections and units that masks switch off for good."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 3)
        self.register_buffer("units", torch.rand(WIDTH) > 0.2)
        self.register_buffer("connections", torch.rand(WIDTH, WIDTH) > 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu() * self.units
        x = F.linear(x, self.second.weight * self.connections, self.second.bias)
        made: Tensor = self.head(x.masked_fill(~self.units, 0.0).relu())
        return made


def fourier() -> tuple[nn.Module, Tensor]:
    lift, drop = nn.Conv1d(3, WIDTH, 1), nn.Conv1d(WIDTH, 2, 1)
    return nn.Sequential(lift, Spectral(WIDTH), Spectral(WIDTH), drop), torch.randn(2, 3, 10)


def masked() -> tuple[nn.Module, Tensor]:
    return Masked(), torch.randn(4, 6)


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize(
    ("build", "cut"),
    [(fourier, "1.weight"), (fourier, "2.weight"), (masked, "units"), (masked, "connections")],
)
def test_they_are_cut(build, cut, calibrated, tmp_path):
    torch.manual_seed(0)
    model, x = build()
    randomize(model).eval()
    data = [torch.randn_like(x)] if calibrated else None
    result = prunella.prune(model, x, ratio=0.5, calibration=data)
    was, found = model.state_dict()[cut], result.model.state_dict()[cut]
    assert found.shape[0] == WIDTH // 2
    assert found.dtype == was.dtype
    assert result.plan.after.macs == prunella.count_macs(result.model, x)
    assert result.certificate.dtype == "float64"
    prunella.save(result.model, tmp_path)
    assert torch.equal(prunella.load(tmp_path, build()[0]).eval()(x), result.model(x))


def test_a_proof_takes_both_parts_of_what_is_complex():
    model, x = fourier()
    model[1].weight.data.real.zero_()
    result = prunella.prune(model, x, ratio={"0": 0.5})
    kept = result.plan.kept
    other = prunella.transform(model, result.plan)
    other[1].weight.data.imag.mul_(1.5)
    assert kept["1.weight"]
    with pytest.raises(prunella.PrunellaError, match="differs from the masked one"):
        prunella.certify(model, other, result.plan, (x,))


class Waves(nn.Module):
    """Complex from its input on."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(6, WIDTH, dtype=torch.cfloat))
        self.second = nn.Parameter(torch.randn(WIDTH, 4, dtype=torch.cfloat))

    def forward(self, z: Tensor) -> Tensor:
        return torch.view_as_real((z @ self.first * 1.5) @ self.second)


def test_inputs_may_be_complex() -> None:
    torch.manual_seed(0)
    model = Waves()
    result = prunella.prune(model, torch.randn(2, 6, dtype=torch.cfloat), ratio=0.5)
    assert result.model.first.shape == (6, WIDTH // 2)
    assert result.certificate.dtype == "float64"
