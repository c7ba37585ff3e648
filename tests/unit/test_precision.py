"""Everything is computed in one precision, whatever the code asks for."""

import pytest
import torch
from torch import Tensor

from prunella.certifying.precision import AtLeast


def asking_for_less(x: Tensor) -> list[Tensor]:
    """Lose digits in every way a model does."""
    return [
        x.to(torch.float32) / 3,
        x.bfloat16() / 3,
        x.half().softmax(-1),
        x.sum(-1, dtype=torch.float32) / 3,
        x + torch.tensor([0.1, 0.2, 0.3]) / 3,
        torch.zeros(2, 3).index_add_(0, torch.tensor([1]), x[:1] / 3),
        torch.complex(x.float(), x.float()) / 3,
        x @ torch.arange(9.0).view(3, 3) / 3,
    ]


def test_digits_are_not_lost() -> None:
    x = torch.rand(2, 3, dtype=torch.float64)
    third = torch.tensor([0.1, 0.2, 0.3]).double() / 3
    wanted = [
        x / 3,
        x / 3,
        x.softmax(-1),
        x.sum(-1) / 3,
        x + third,
        torch.stack([torch.zeros(3).double(), x[0] / 3]),
        torch.complex(x, x) / 3,
        x @ torch.arange(9.0).double().view(3, 3) / 3,
    ]
    with AtLeast(torch.float64):
        found = asking_for_less(x)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-15, atol=1e-16)


def test_in_single_precision_half_is_raised_and_double_stays() -> None:
    x = torch.rand(2, 3)
    with AtLeast(torch.float32):
        assert torch.equal(x.half() / 3, x / 3)
        assert (x.double() / 3).dtype == torch.float64


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16, torch.float32])
def test_the_limits_of_a_lower_precision_become_those_of_the_higher(low: torch.dtype) -> None:
    x = torch.zeros(2, dtype=torch.float64)
    with AtLeast(torch.float64):
        masked = x.masked_fill(x == 0, torch.finfo(low).min)
    assert masked.tolist() == [torch.finfo(torch.float64).min] * 2


def test_a_view_stays_a_view() -> None:
    with AtLeast(torch.float64):
        x = torch.zeros(4)
        x[:2].add_(1)
        x.view(2, 2)[1].fill_(2)
    assert x.tolist() == [1, 1, 2, 2]
