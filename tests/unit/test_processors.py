"""A run says when its threads take longer than one of them would."""

import logging
from collections.abc import Iterator

import pytest
import torch

from prunella.pipeline import processors
from prunella.pipeline.processors import look_at_threads
from prunella.runtimes.in_torch import threads_set


@pytest.fixture(autouse=True)
def two() -> Iterator[None]:
    with threads_set(2):
        yield


@pytest.mark.parametrize(("several", "told"), [(30.0, True), (14.0, False), (5.0, False)])
def test_threads_that_wait_for_each_other_are_told(
    several: float,
    told: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(processors, "_milliseconds", lambda count: several if count == 2 else 10.0)
    with caplog.at_level(logging.WARNING, "prunella"):
        look_at_threads()
    assert ("2 threads take 3.0 times as long as one here" in caplog.text) == told
    assert ("`--run.threads 1`" in caplog.text) == told


def test_both_numbers_are_timed_and_torch_is_left_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = set()
    convolution = processors.conv2d

    def watched(*args: torch.Tensor, padding: int) -> torch.Tensor:
        seen.add(torch.get_num_threads())
        return convolution(*args, padding=padding)

    monkeypatch.setattr(processors, "conv2d", watched)
    look_at_threads()
    assert seen == {1, 2}
    assert torch.get_num_threads() == 2


def test_one_thread_waits_for_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "_milliseconds", lambda count: pytest.fail("measured"))
    with threads_set(1):
        look_at_threads()
