"""Runs with a budget on time: measured once, spent in rounds, kept by the stopwatch, told."""

import html
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import prunella
from prunella import pipeline
from prunella.allocating.planning import mask_of
from prunella.cli import tables
from prunella.costs.latency import Latency
from prunella.costs.timed import LatencyModel, Part, Region, digest_of
from prunella.costs.widths import PLAIN, widths
from prunella.errors import BudgetError, ConfigError
from prunella.latency import meeting
from prunella.latency.remaining import remaining
from prunella.latency.sampling import draw
from prunella.model.carrying import plan_of
from prunella.pipeline import finishing, profiling, rounds
from prunella.pipeline.context import Context
from prunella.pipeline.slots import Slot
from prunella.report import render
from prunella.runtimes import Runtime
from tests.models import ZOO
from tests.unit.test_latency_budget import UNEVEN, drawn_model
from tests.unit.test_latency_model import Machine
from tests.unit.test_pipeline import settings

DENSE = 8.2


def predicted(model: nn.Module) -> float:
    """Return what the latency model of these tests says of a network of `tiny_task`."""
    first, second = (len(model.get_parameter(f"{n}.weight")) for n in ("stem.0", "conv1"))
    return 1 + 0.2 * first + 0.3 * second


def slower(model: nn.Module) -> float:
    """Be slower than predicted, the more the more is cut."""
    return DENSE * (predicted(model) / DENSE) ** 0.8


def known(groups: prunella.Groups) -> LatencyModel:
    index = {width.channels.tobytes(): w for w, width in enumerate(widths(groups))}

    def part(group: str, ms: float) -> Part:
        found = groups[group]
        numbers = np.arange(found.start, found.start + found.channels, dtype=np.int64)
        return Part(ms, (index[numbers.tobytes()],), (PLAIN,))

    parts = (Part(1.0, (), ()), part("stem.0", 0.2), part("conv1", 0.3))
    return LatencyModel("torch", digest_of(groups), (Region("all", "", parts),), DENSE, 16, 0.0, 0)


class Bench:
    """A machine on which networks take what they are said to, and how often it was profiled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.profiled: list[Runtime] = []
        self.true: Callable[[nn.Module], float] = slower
        machine = Machine(lambda model: self.true(model))
        for place in (meeting, finishing):
            monkeypatch.setattr(place, "prepare", machine.prepare)
            monkeypatch.setattr(place, "compare", machine.compare)
        monkeypatch.setattr(profiling, "profile", self.profile)

    def profile(self, model: Any, inputs: Any, groups: Any, runtime: Any, **_: Any) -> LatencyModel:
        self.profiled.append(runtime)
        return known(groups)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def timed(folder: Path, bound: float | str = 0.5, **more: Any) -> Any:
    return settings(folder, budget__macs=None, budget__latency=bound, **more)


def kept_by(groups: prunella.Groups, plan: prunella.Plan) -> np.ndarray:
    """Read the mask of a plan off the tensors."""
    mask = np.zeros(groups.channels, dtype=bool)
    for axis, number in groups.axes.items():
        kept = plan.kept.get(axis.tensor, {}).get(axis.dim)
        mask[number if kept is None else number[np.array(kept)]] = True
    return mask


@pytest.mark.parametrize("name", ["chain", "residual", "concat", "split", "depthwise", "gate"])
def test_what_is_left_of_a_network_needs_no_profile_of_its_own(name: str) -> None:
    model, inputs = ZOO[name].model().eval(), ZOO[name].inputs()
    groups = prunella.couple(prunella.trace(model, inputs))
    latency_model = drawn_model(groups, 3, UNEVEN)
    for seed in range(3):
        first = next(draw(groups, seed))
        small = prunella.transform(model, first, inputs, certify=False)
        left = prunella.couple(prunella.trace(small, inputs))
        if not len(left):  # single channels are none to a graph
            continue
        found = remaining(latency_model, groups, left, first)
        assert found.dense == latency_model.dense
        whole = np.ones(left.channels, dtype=bool)
        expected = latency_model.predict(groups, mask_of(groups, first.channels))
        assert found.predict(left, whole) == pytest.approx(expected, rel=1e-9)
        second = next(draw(left, seed + 10))
        both = plan_of(prunella.transform(small, second, inputs, certify=False))
        assert both is not None
        expected = latency_model.predict(groups, kept_by(groups, both))
        after = mask_of(left, second.channels)
        assert found.predict(left, after) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("bound", [0.5, "4.1ms"])
def test_a_run_spends_time_in_rounds_and_is_timed(
    bound: float | str, bench: Bench, tmp_path: Path
) -> None:
    result = pipeline.run(timed(tmp_path, bound))
    record = result.record
    assert bench.profiled == [Runtime()]
    assert record.budget == {"latency": pytest.approx(0.5)}
    first, last = (attempt for found in record.rounds for attempt in found.attempts)
    assert first.target == {"latency": pytest.approx(0.5**0.5)}
    assert first.latency is not None
    assert 0.65 * DENSE < first.latency <= 0.5**0.5 * DENSE
    assert not first.found
    assert last.target == {"latency": pytest.approx(0.5)}
    assert last.latency is not None
    # Half as predicted would take 57%: the plan was corrected on the stopwatch.
    assert last.found.startswith("plans timed: 3; ")
    assert last.latency < 0.45 * DENSE
    assert re.search(r"4\.\d+ ms .*; asked 4\.1 ms, predicted 3", last.found)
    held = record.latency_budget
    assert held is not None
    final = prunella.load(tmp_path / "final", Context(timed(tmp_path)).dense)
    assert held.predicted_ms == pytest.approx(predicted(final))
    assert held.got_ms == pytest.approx(slower(final))
    assert held.limit_ms == pytest.approx(DENSE / 2)
    assert held.asked == bound
    assert held.kept
    assert held.got_ms <= 1.02 * held.limit_ms
    assert record.outcome == "done"
    assert "profile" in record.stages
    page = html.unescape(render(record))
    assert f"asked {bound}, at most 4.1 ms" in page
    assert "Latency (torch)" in page
    assert last.found in page


def test_nothing_is_measured_again(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heal, config = rounds.heal, timed(tmp_path)

    def killed(context: Context, slot: Slot, *rest: Any, **more: Any) -> Any:
        if slot.round == 2:
            raise KeyboardInterrupt
        return heal(context, slot, *rest, **more)

    monkeypatch.setattr(rounds, "heal", killed)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(config)
    cut = (tmp_path / "rounds/02/1/prune.json").read_text()
    monkeypatch.setattr(rounds, "heal", heal)
    bench.true = lambda model: 1.0  # another plan would be made, if one were made
    pipeline.run(config)
    assert len(bench.profiled) == 1
    assert (tmp_path / "rounds/02/1/prune.json").read_text() == cut
    # Where time is measured belongs to what is measured.
    pipeline.rehearse(timed(tmp_path, budget__runtime="torch:threads=1"))
    assert [str(runtime) for runtime in bench.profiled] == ["torch", "torch:threads=1"]


def test_a_smaller_step_takes_less_time_away(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = rounds.judge

    def strict(context: Context, slot: Slot, tuned: Any, baseline: Any) -> Any:
        entry = real(context, slot, tuned, baseline)
        if slot != Slot(1, 1):
            return entry
        context.space.write(slot.record("verdict"), entry.inputs, {"accepted": False, "reason": ""})
        return context.space.read(slot.record("verdict"))

    monkeypatch.setattr(rounds, "judge", strict)
    record = pipeline.run(timed(tmp_path, prune__rounds=1)).record
    attempts = [attempt for found in record.rounds for attempt in found.attempts]
    assert [round(attempt.target["latency"], 3) for attempt in attempts] == [0.5, 0.707, 0.5]
    assert [bool(attempt.found) for attempt in attempts] == [True, False, True]
    assert record.outcome == "done"


def test_a_budget_that_the_stopwatch_says_is_missed(bench: Bench, tmp_path: Path) -> None:
    bench.true = lambda model: DENSE if predicted(model) == DENSE else 7.0
    result = pipeline.run(timed(tmp_path, prune__rounds=1))
    assert result.record.outcome == "missed"
    assert result.record.latency_budget is not None
    assert not result.record.latency_budget.kept
    (note,) = (note for note in result.record.notes if "latency" in note)
    assert "at most 4.1 ms were asked" in note
    assert "takes 7 ms" in note
    assert "the stopwatch says that it is not kept" in render(result.record)


def test_prune_by_hand_is_timed_too(bench: Bench, tmp_path: Path) -> None:
    result = pipeline.prune(timed(tmp_path, 0.6))
    held = result.record.latency_budget
    assert held is not None
    assert held.kept
    pipeline.finetune(timed(tmp_path, 0.6))
    assert pipeline.transform(timed(tmp_path, 0.6)).record.outcome == "done"
    assert len(bench.profiled) == 1


def test_time_that_cannot_be_had_is_said_before_any_work(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"at most 0\.82 ms of latency of the .* leaves 1\.5 ms"):
        pipeline.run(timed(tmp_path, 0.1))
    assert not (tmp_path / "baseline.json").exists()


def test_predictions_of_budgets_say_the_time(bench: Bench, tmp_path: Path) -> None:
    found = pipeline.suggest(timed(tmp_path))
    for row in found.rows:
        assert row.latency is not None
        assert row.latency <= row.budget["latency"] * DENSE
        assert row.left["latency"] == pytest.approx(row.latency / DENSE)
    assert [row.asked for row in found.rows].count(True) == 1
    assert tables.forecasts(found).columns[3].header == "latency, predicted"
    (row,) = pipeline.rehearse(timed(tmp_path)).rows
    assert row.latency is not None
    assert row.latency <= DENSE / 2
    assert not (tmp_path / "rounds").exists()


def test_looking_on_measures_nothing(bench: Bench, tmp_path: Path) -> None:
    assert pipeline.stat(timed(tmp_path)).record.budget == {}
    pipeline.analyze(timed(tmp_path))
    assert not bench.profiled


def test_where_time_is_measured(tmp_path: Path) -> None:
    def runtime(**more: Any) -> str:
        return str(Context(timed(tmp_path, **more)).runtime)

    assert runtime() == "torch"
    assert runtime(run__threads=2) == "torch:threads=2"
    assert runtime(budget__runtime="onnxruntime", run__threads=2) == "onnxruntime:threads=2"
    named = "onnxruntime:threads=1"
    assert runtime(budget__runtime=named, run__threads=2) == named


def test_a_runtime_that_is_not_installed_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNELLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    config = timed(tmp_path / "run", budget__runtime="onnxruntime:threads=1")
    with pytest.raises(ConfigError, match=r"pip install 'prunella\[onnx\]'"):
        pipeline.run(config)
    assert not (tmp_path / "run/baseline.json").exists()


@pytest.mark.parametrize("name", ["weight_bytes", "params"])
def test_any_budget_goes_in_rounds_and_is_suggested(name: str, tmp_path: Path) -> None:
    config = settings(tmp_path, budget__macs=None, **{f"budget__{name}": 0.6})
    assert all(row.left[name] <= row.budget[name] for row in pipeline.suggest(config).rows)
    record = pipeline.run(config).record
    assert [len(found.attempts) for found in record.rounds] == [1, 1]
    assert record.outcome == "done"


def test_noise_is_no_verdict(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(models: Any, **_: Any) -> dict[str, Latency]:
        runs = {"baseline": (DENSE,) * 7, "compressed": (3.0, 9.0, 4.5, 9.0, 4.5, 4.5, 3.0)}
        return {name: Latency(np.median(ms).item(), 3, 9, 7, ms) for name, ms in runs.items()}

    monkeypatch.setattr(finishing, "compare", compare)
    record = pipeline.run(timed(tmp_path, prune__rounds=1)).record
    assert record.latency_budget is not None
    assert record.latency_budget.got_ms == pytest.approx(4.5)
    assert record.latency_budget.kept is None
    assert record.outcome == "done"
    assert "more, but not beyond the noise of these runs" in render(record)
