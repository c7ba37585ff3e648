"""Saving and loading where a model computes buffers for itself."""

from pathlib import Path

import torch
from torch import Tensor, nn

import prunella


class Growing(nn.Module):
    """Has a table of positions that the first run makes as long as the input."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 16), nn.Linear(16, 3)
        self.register_buffer("places", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.places.shape[0] != x.shape[1]:
            self.places = torch.arange(x.shape[1], dtype=x.dtype) / x.shape[1]
        return self.down(torch.relu(self.up(x) + self.places[:, None]))


def test_a_buffer_that_grows_on_the_first_run_is_no_part_of_the_structure(tmp_path: Path) -> None:
    x = torch.randn(2, 5, 4)
    for run_first in (False, True):
        model = Growing()
        if run_first:
            model(x)
        pruned = prunella.prune(model, x, ratio=0.5).model
        wanted = pruned(x)
        prunella.save(pruned, tmp_path / "saved")
        fresh = Growing()  # with other weights, and a table of length 1
        torch.testing.assert_close(prunella.load(tmp_path / "saved", fresh)(x), wanted)
        used = Growing()
        used(torch.randn(2, 7, 4))
        torch.testing.assert_close(prunella.load(tmp_path / "saved", used)(x), wanted)
