"""Kernels that take all positions of a dimension at once: a product, and no sliding along it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunella
from tests import oracle

WORDS = torch.randint(0, 50, (3, 12), generator=torch.Generator().manual_seed(0))


class TextCNN(nn.Module):
    """As in Kim's paper: kernels as wide as the embedding."""

    def __init__(self, padding: int = 0) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.convs = nn.ModuleList(
            nn.Conv2d(1, 8, (k, 16), padding=(k - 1, padding)) for k in (2, 3)
        )
        self.head = nn.Linear(16, 5)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words).unsqueeze(1)
        return self.head(torch.cat([F.relu(c(x)).amax((2, 3)) for c in self.convs], 1))


@pytest.mark.parametrize("calibration", [None, [WORDS, WORDS.flip(1)]])
@pytest.mark.parametrize("form", ["class", "graph"])
def test_an_embedding_is_cut_with_the_width_of_its_kernels(form: Any, calibration: Any) -> None:
    torch.manual_seed(0)
    model = TextCNN().double().eval()
    result = prunella.prune(model, WORDS, ratio=0.5, form=form, calibration=calibration)
    assert [len(result.plan.kept["embed.weight"][d]) for d in (1,)] == [8]
    assert [len(result.plan.kept[f"convs.{i}.weight"][3]) for i in (0, 1)] == [8, 8]
    assert result.plan.after.macs == prunella.count_macs(result.model, (WORDS,))
    if form == "class":
        assert result.model.convs[1].kernel_size == (3, 8)
        assert result.model.embed.embedding_dim == 8
    if calibration is None:
        oracle.check_pruned(model, result.plan, result.model, (WORDS,), {})


def test_what_a_kernel_slides_along_stays() -> None:
    groups = prunella.couple(prunella.trace(TextCNN(padding=1), WORDS))
    (frozen,) = [g for g in groups.frozen if g.name == "embed[1]"]
    assert "is convolved along" in str(frozen.frozen[0])
