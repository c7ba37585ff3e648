"""What is taken of calibration data."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from prunella.calibration import calibration
from prunella.model.examples import samples_in


def count(batches: object) -> int:
    return sum(samples_in(batch) for batch in calibration(batches).batches)


def endless(sizes: tuple[int, ...]) -> Iterator[Tensor]:
    while True:
        yield torch.zeros(sizes)


def test_of_a_loader_the_first_samples_are_read(caplog: pytest.LogCaptureFixture) -> None:
    read: list[int] = []

    class Images(TensorDataset):
        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            read.append(index)
            return super().__getitem__(index)

    loader = DataLoader(Images(torch.zeros(5000, 3), torch.zeros(5000)), batch_size=100)
    assert count(loader) == 2100
    assert len(read) <= 2200  # one batch more says that there is one
    assert "the first 2100 samples (0 MB) are used" in caplog.text
    assert "a list of batches is used whole" in caplog.text


def test_a_stream_without_an_end_ends(caplog: pytest.LogCaptureFixture) -> None:
    assert count(endless((64, 2))) == 2048
    assert "the first 2048 samples" in caplog.text


def test_large_samples_are_enough_sooner(caplog: pytest.LogCaptureFixture) -> None:
    large = torch.zeros(1).expand(8, 2**25)  # of 128 MB each, of which none is stored
    assert count(iter([large] * 3)) == 8
    assert "the first 8 samples (1074 MB)" in caplog.text


def test_what_is_short_or_a_list_is_used_whole(caplog: pytest.LogCaptureFixture) -> None:
    assert count([torch.zeros(1000, 2)] * 4) == 4000
    assert count(torch.zeros(4000, 2)) == 4000
    assert count(iter([torch.zeros(1000, 2)] * 2)) == 2000
    assert count(iter([torch.zeros(3000, 2)])) == 3000
    assert not caplog.text
