"""What is taken of calibration data."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from prunella.calibration import Calibration, calibration
from prunella.errors import ConfigError
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


def test_batches_can_be_read_more_than_once() -> None:
    data = Calibration(((torch.zeros(2),), {}) for _ in range(3))
    assert len(data.batches) == len(list(data.batches)) == 3


@pytest.mark.parametrize("batches", [[], (), iter([])])
def test_no_batch_is_an_error(batches: Any) -> None:
    with pytest.raises(ConfigError, match="hold no batch"):
        Calibration(batches)


def test_what_are_no_batches_is_an_error() -> None:
    with pytest.raises(ConfigError, match="got int"):
        Calibration(3)  # type: ignore[arg-type]


def test_a_data_set_is_no_batches() -> None:
    """Its items are samples: three channels would be read as a batch of three."""
    samples = TensorDataset(torch.randn(70, 3, 8, 8), torch.zeros(70))
    with pytest.raises(ConfigError, match=r"a data set \(TensorDataset\) gives single samples"):
        calibration(samples)
    batches = calibration(DataLoader(samples, batch_size=64)).batches
    assert [samples_in(batch) for batch in batches] == [64, 6]
