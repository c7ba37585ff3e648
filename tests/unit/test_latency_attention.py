"""Attention that torch runs as one operator at some widths, and as many at others."""

import pytest
import torch
from torch import nn

import prunella
from prunella.costs.widths import widths
from prunella.latency.in_torch import TorchBench
from prunella.latency.subject import Subject
from prunella.runtimes import Runtime


class Choosy(nn.Module):
    """Calls another operator when its width is odd."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 9), nn.Linear(9, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        return self.second(hidden.relu() if self.first.weight.shape[0] == 9 else hidden.sigmoid())


def bench(model: nn.Module, x: torch.Tensor) -> TorchBench:
    groups = prunella.couple(prunella.trace(model, x))
    subject = Subject(model, groups, widths(groups), ((x,), {}))
    return TorchBench(subject, Runtime("torch", threads=1))


@pytest.mark.filterwarnings("ignore::UserWarning:torch.nn.modules")  # about batch_first
def test_attention_with_fewer_heads_calls_the_same_operators() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    found = bench(
        nn.Sequential(layer, layer_norm := nn.LayerNorm(32)).eval(), torch.randn(1, 5, 32)
    )
    assert layer_norm.weight.numel() == 32
    ops = {place.op for place in found.places.values()}
    assert "aten.scaled_dot_product_attention.default" in ops
    sample = found.time(None)
    assert sample.regions.keys() == found.places.keys()


def test_operators_that_depend_on_widths_leave_the_whole() -> None:
    assert bench(Choosy().eval(), torch.randn(2, 6)).places == {}
