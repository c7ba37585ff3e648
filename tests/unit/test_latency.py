import time

import pytest
import torch
from torch import nn

from prunella.costs.latency import Latency, Speedup, compare, speedup
from prunella.errors import ConfigError
from prunella.runtimes import Prepared, Runtime, prepare


class Sleeper(nn.Module):
    def __init__(self, ms: float) -> None:
        super().__init__()
        self.ms = ms
        self.seen: list[tuple[bool, bool, int]] = []

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        self.seen.append(
            (self.training, torch.is_inference_mode_enabled(), torch.get_num_threads())
        )
        time.sleep(self.ms * scale / 1e3)
        return x


X = torch.zeros(1)


def test_ratio_and_interval_of_two_known_times():
    times = compare({"slow": Sleeper(6), "fast": Sleeper(2)}, X, runs=15)
    assert times["slow"].runs == times["fast"].runs == 15
    assert times["slow"].p10_ms <= times["slow"].median_ms <= times["slow"].p90_ms
    found = speedup(times["slow"], times["fast"])
    assert found.certain
    assert found.low <= found.ratio <= found.high
    assert 2 < found.ratio < 3.2
    assert "x faster (" in str(found)
    assert "x slower (" in str(speedup(times["fast"], times["slow"]))


def test_drift_that_both_models_share_does_not_hide_the_ratio():
    drift = [1.0, 9.0, 2.0, 7.0, 3.0, 8.0, 1.5, 4.0]
    dense = Latency(4, 1, 9, 8, tuple(2 * ms for ms in drift))
    pruned = Latency(2, 0.5, 4, 8, tuple(drift))
    assert speedup(dense, pruned) == Speedup(2.0, 2.0, 2.0)


def test_equal_models_are_inside_the_noise():
    values = (1.0, 1.1, 0.9, 1.2, 0.8, 1.0, 1.05, 0.95)
    found = speedup(Latency(1, 1, 1, 8, values), Latency(1, 1, 1, 8, values[::-1]))
    assert not found.certain
    assert str(found).startswith("no difference beyond the noise (0.")


def test_a_steady_difference_below_the_resolution_is_noise():
    assert not Speedup(1.01, 1.008, 1.012).certain
    assert Speedup(1.05, 1.04, 1.06).certain
    assert not Speedup(1.5, 0.9, 2.0).certain


def test_every_run_is_evaluation_without_gradients_on_the_asked_threads():
    before = torch.get_num_threads()
    model = Sleeper(0.01).train()
    compare({"only": model}, (X,), {"scale": 0.5}, threads=before + 1, runs=7, warmup=2)
    assert set(model.seen) == {(False, True, before + 1)}
    assert len(model.seen) == 2 + 2 * 7
    assert model.training
    assert torch.get_num_threads() == before


def test_state_is_restored_when_the_model_fails():
    before = torch.get_num_threads()
    model = nn.Linear(3, 3).train()
    with pytest.raises(ConfigError, match=r"`wrong` raised RuntimeError.*mat1.*Repair") as caught:
        compare({"wrong": model}, torch.zeros(1, 4), threads=before + 1)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert model.training
    assert torch.get_num_threads() == before


def test_models_take_turns_in_an_order_that_changes():
    turns: list[str] = []

    class Named(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            turns.append(self.name)
            return x

    compare({"a": Named("a"), "b": Named("b")}, X, runs=20, warmup=0)
    pairs = ["".join(turns[i : i + 4]) for i in range(0, len(turns), 4)]
    assert set(pairs) == {"aabb", "bbaa"}


def test_time_budget_bounds_small_models_and_gives_slow_ones_enough():
    began = time.perf_counter()
    assert compare({"tiny": nn.Identity()}, X, seconds=0.2)["tiny"].runs <= 300
    assert compare({"slow": Sleeper(20)}, X, seconds=0.001)["slow"].runs == 7
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"models": {}}, "there is no model to time"),
        ({"threads": 0}, "`threads` must be at least 1, got threads=0"),
        ({"seconds": 0.0}, "`seconds` must be above 0, got seconds=0.0"),
        ({"runs": 3}, "`runs` must be at least 7, got runs=3"),
        ({"warmup": -1}, "`warmup` must not be negative"),
        ({"models": {"m": nn.Linear(2, 2, device="meta")}}, "meta device computes nothing"),
    ],
)
def test_bad_arguments_are_told(options, text):
    with pytest.raises(ConfigError, match=text):
        compare(**{"models": {"m": nn.Identity()}, "example_inputs": X} | options)


def test_a_speedup_needs_times_taken_together():
    with pytest.raises(ConfigError, match="runs that pair up, got 1 and 2"):
        speedup(Latency(1, 1, 1, 1, (1.0,)), Latency(1, 1, 1, 2, (1.0, 1.0)))


def test_prepared_models_and_modules_run_by_one_stopwatch():
    slow = Prepared(Runtime("onnxruntime"), lambda: time.sleep(6e-3), lambda arrays: [])
    times = compare({"prepared": slow, "module": Sleeper(2)}, X, runs=15)
    assert 2 < speedup(times["prepared"], times["module"]).ratio < 3.2
    assert compare({"alone": slow}, runs=7)["alone"].runs == 7
    with pytest.raises(ConfigError, match="the module `m` needs inputs to be timed on"):
        compare({"m": Sleeper(1), "p": slow})


def test_prepared_models_run_with_the_threads_of_their_runtime():
    before, seen = torch.get_num_threads(), []

    class Watcher(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return x

    ready = {n: prepare(Watcher(), X, runtime=f"torch:threads={before + n}") for n in (1, 2)}
    compare({"more": ready[1]}, runs=7, warmup=0)
    assert seen == [before + 1] * 14
    compare({"more": ready[1], "most": ready[2], "module": Watcher()}, X, runs=7, warmup=0)
    assert sorted(seen[14:]) == [before] * 14 + [before + 1] * 14 + [before + 2] * 14
    assert torch.get_num_threads() == before
    with pytest.raises(ConfigError, match=f"prepared for `torch:threads={before + 1}` and cannot"):
        compare({"p": ready[1]}, threads=before + 2)


def test_a_ratio_inside_the_noise_is_not_reported():
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(4)])
    x = torch.randn(8, 64)
    ready = prepare(model, x, runtime="torch:threads=1")
    times = compare({"a": ready, "b": ready}, seconds=1)
    found = speedup(times["a"], times["b"])
    assert found.reported is None
    assert str(found).startswith("no difference beyond the noise")
    assert Speedup(2.0, 1.9, 2.1).reported == 2.0
    near = Speedup(1.01, 1.008, 1.012)  # certain, but no more than the clock resolves
    assert near.reported is None
    assert str(near) == "no difference beyond the clock's 2% (1.01x to 1.01x)"


@pytest.mark.gpu
def test_an_accelerator_is_waited_for():
    device = torch.accelerator.current_accelerator()
    model = nn.Sequential(*[nn.Linear(4096, 4096) for _ in range(8)]).to(device)
    times = compare({"deep": model, "flat": model[0]}, torch.zeros(4096, 4096, device=device))
    assert speedup(times["deep"], times["flat"]).ratio > 4
