"""Latency models: what is fitted, what is cast, what is kept on the disk, what is met."""

import importlib.util
import itertools
import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import prunella
from prunella.allocating import Allocation, allocate_and_bound, told
from prunella.costs.latency import Latency
from prunella.costs.timed import LatencyModel, Part, Region, digest_of
from prunella.costs.widths import PLAIN, Step, Width, lengths, widths
from prunella.errors import BudgetError, ConfigError, NothingToPruneError, WorkspaceError
from prunella.latency import latency, meeting, profile
from prunella.latency.caching import measurements
from prunella.latency.compiled import NETWORKS, fit_compiled
from prunella.latency.fitting import fit, predict
from prunella.latency.fitting_whole import fit_whole
from prunella.latency.in_torch import TorchBench
from prunella.latency.kernels import _assigned, _Kernel, regions
from prunella.latency.measured import Place, Sample
from prunella.latency.meeting import meet
from prunella.latency.moulding import NoMouldError, link, mould, shapes_of
from prunella.latency.sampling import draw, telling
from prunella.latency.whole import clock_for
from prunella.runtimes import Runtime, available
from prunella.transforming.transforming import smaller

INPUTS = torch.randn(2, 3, 12, 12)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 40, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(40, 17),
        nn.ReLU(),
        nn.Linear(17, 5),
    ).eval()


def needs(package: str) -> None:
    """Skip without a package; to import OpenVINO for that would start its telemetry."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def grouped(model: nn.Module) -> prunella.Groups:
    return prunella.couple(prunella.trace(model, INPUTS))


def lengths_of(groups: prunella.Groups, plan: prunella.Plan | None) -> np.ndarray:
    mask = np.ones(groups.channels, dtype=bool)
    for group in groups:
        if plan is not None:
            mask[group.start : group.start + group.channels] = False
            mask[group.start + np.array(plan.channels[group.name])] = True
    return lengths(widths(groups), mask)


def sampled(
    times: Mapping[str, Callable[[np.ndarray], float]], most: tuple[int, ...], count: int
) -> list[Sample]:
    draw = np.random.default_rng(0)
    made = []
    for _ in range(count):
        long = np.array([draw.integers(1, n + 1) for n in most])
        found = {name: time(long) for name, time in times.items()}
        made.append(Sample(long, found, 1.1 * sum(found.values()) + 0.2))
    return made


def test_steps_and_cliffs_are_found() -> None:
    def blocked(long: np.ndarray) -> float:
        a, b = -(-long // 16) * 16
        return float(1e-3 * a * b + (5e-4 * long[0] * long[1] if long[0] % 4 else 0))

    samples = sampled({"conv": blocked, "relu": lambda long: 0.01 * float(long[1])}, (64, 128), 120)
    alone = [Width(np.arange(64), True), Width(np.arange(64, 192), True)]
    places = {"conv": Place("conv", (0, 1), ()), "relu": Place("relu", (1,), ())}
    found = fit(places, alone, samples[:80])
    long = np.array([sample.lengths for sample in samples[80:]])
    whole = np.array([sample.whole for sample in samples[80:]])
    assert np.abs(predict(found, long) / whole - 1).max() < 0.02
    smooth = [Width(width.channels, False) for width in alone]  # shortened by several clusters
    found = fit(places, smooth, samples[:80])
    assert all(step == PLAIN for r in found for part in r.parts for step in part.steps)
    assert np.abs(predict(found, long) / whole - 1).max() > 0.1


def test_whole_networks_alone_tell_steps_too() -> None:
    groups = grouped(small())
    found = widths(groups)
    samples = []
    for plan in itertools.islice(draw(groups, 0), 60):
        long = lengths_of(groups, plan)
        padded = -(-long // 8) * 8
        samples.append(Sample(long, {}, 0.3 + 1e-4 * float(padded[0] * (27 + 9 * padded[1]))))
    fitted = fit_whole(groups, found, samples[:40])
    long = np.array([sample.lengths for sample in samples[40:]])
    whole = np.array([sample.whole for sample in samples[40:]])
    assert np.median(np.abs(predict(fitted, long) / whole - 1)) < 0.03


def test_numbers_are_linked_to_widths() -> None:
    known = np.array([[8, 10], [4, 5], [6, 3]])
    numbers = np.array([[3, 16, 30], [3, 8, 15], [3, 12, 9]])
    linked = link(numbers, known)
    assert linked.width.tolist() == [-1, 0, 1]
    assert linked.at(np.array([7, 9])).tolist() == [3, 14, 27]
    with pytest.raises(NoMouldError, match="follows no width"):
        link(np.array([[8], [5], [6]]), known)


def exported(model: nn.Module, folder: Path) -> Any:
    onnx = pytest.importorskip("onnx")
    from prunella.runtimes.converting import write_onnx

    write_onnx(model, INPUTS, None, folder / "model.onnx")
    return onnx.load(folder / "model.onnx")


def test_a_cast_file_is_the_exported_one(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    model = small()
    groups = grouped(model)
    plans = telling(groups, widths(groups), 3, 0)
    made: list[prunella.Plan | None] = [None, *plans]
    files = [
        exported(model if plan is None else smaller(model, plan, groups), tmp_path) for plan in made
    ]
    known = np.array([lengths_of(groups, plan) for plan in made])
    found = mould(files, known)
    plan = next(draw(groups, 3))
    cast = found.cast(lengths_of(groups, plan))
    true = exported(smaller(model, plan, groups), tmp_path)
    named = {t.name for t in true.graph.initializer}
    assert named
    for name in named:
        assert shapes_of(cast)[name] == shapes_of(true)[name]
    session = ort.InferenceSession(cast.SerializeToString(), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: INPUTS.numpy()})
    assert output.shape == (2, 5)
    with pytest.raises(NoMouldError):
        mould(files, known[[0, 2, 1, 3]])  # the widths of other networks


def test_kernels_go_to_the_nodes_they_came_from() -> None:
    onnx = pytest.importorskip("onnx")
    make = onnx.helper.make_node
    nodes = [
        make("Conv", ["x", "w"], ["c"], "conv"),
        make("Relu", ["c"], ["r"], "relu"),
        make("Conv", ["r", "v"], ["d"], "second"),
        make("Add", ["d", "r"], ["s"], "add"),
        make("MatMul", ["s", "u"], ["m"], "product"),
    ]
    file = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], []))
    known = regions(file)
    assert known.of["relu"] == known.of["r"] == "conv"
    assert known.of["add"] == "second"  # what it reads last
    assert known.tensors["second"] == ("r", "v", "d", "s")
    wide, narrow, out = (1, 32, 4, 4), (1, 29, 4, 4), (1, 16, 4, 4)
    kernels = [
        _Kernel("r_nchwc", "Conv", ((1, 3, 4, 4),), (wide,)),
        _Kernel("ReorderOutput_token_1", "ReorderOutput", (wide,), (narrow,)),
        _Kernel("ReorderInput", "ReorderInput", (narrow,), (wide,)),
        _Kernel("d_nchwc", "Conv", (wide, out), (out,)),
        _Kernel("product/MatMulScaleFusion//MatmulTransposeFusion/", "FusedMatMul", (out,), ()),
        _Kernel("Squeeze_token_9", "Squeeze", ((7,),), ((7, 7),)),
    ]
    assert [region for _, region in _assigned(kernels, known)] == [
        *("conv", "conv", "second", "second", "product", "product")
    ]


def test_what_was_measured_is_kept_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small()
    groups = grouped(model)
    timed: list[prunella.Plan | None] = []
    time = TorchBench.time

    def counted(bench: TorchBench, plan: prunella.Plan | None) -> Sample:
        if len(timed) == 10:
            raise KeyboardInterrupt
        timed.append(plan)
        return time(bench, plan)

    monkeypatch.setattr(TorchBench, "time", counted)
    monkeypatch.setattr(latency, "disturbed", lambda fitted, samples: [])
    arguments = (model, INPUTS, groups, "torch:threads=1")
    with pytest.raises(KeyboardInterrupt):
        profile(*arguments, plans=16, folder=tmp_path)
    assert timed[0] is None
    timed.clear()
    found = profile(*arguments, plans=16, folder=tmp_path)
    assert len(timed) == 6
    assert found.plans == 16
    assert found.dense > 0
    assert 0 <= found.error <= found.worst
    mask = np.ones(groups.channels, dtype=bool)
    assert found.predict(groups, mask) == pytest.approx(sum(found.by_region(groups, mask).values()))
    timed.clear()
    assert profile(*arguments, plans=16, folder=tmp_path) == found
    assert not timed
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setenv("PRUNELLA_CACHE", str(tmp_path / "other"))
    with pytest.raises(KeyboardInterrupt):
        profile(*arguments, plans=16)
    assert len(timed) == 10  # another folder: begun again


def test_a_damaged_journal_is_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    groups = grouped(small())
    runtime = Runtime.of("torch")
    journal = measurements(groups, runtime, 0, tmp_path)
    journal.append({"places": {}})
    journal.path.write_text(journal.path.read_text().replace("places", "other"))
    assert not measurements(groups, runtime, 0, tmp_path).entries
    assert "begun anew" in caplog.text
    (tmp_path / "file").touch()
    with pytest.raises(WorkspaceError, match="PRUNELLA_CACHE"):
        measurements(groups, runtime, 0, tmp_path / "file")


def test_nothing_to_cut_is_said(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3))
    with pytest.raises(NothingToPruneError):
        profile(model, INPUTS, grouped(model), "torch", folder=tmp_path)


def test_onnx_runtime_is_profiled_by_region(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = small()
    groups = grouped(model)
    found = profile(model, INPUTS, groups, "onnxruntime:threads=1", plans=16, folder=tmp_path)
    ops = [region.op for region in found.regions]
    assert ops.count("Conv") == 2
    assert ops.count("Gemm") == 2
    read = {w for r in found.regions if r.op == "Conv" for part in r.parts for w in part.widths}
    assert read
    plan = prunella.allocate(
        groups,
        prunella.score(model, groups),
        prunella.Budget(latency=0.97),
        latency_model=found,
    )
    assert plan.after.latency is not None
    assert plan.before.latency is not None
    assert plan.after.latency <= 0.97 * plan.before.latency


def test_a_runtime_that_shows_nothing_is_profiled_from_outside(tmp_path: Path) -> None:
    needs("openvino")
    model = small()
    groups = grouped(model)
    found = profile(model, INPUTS, groups, "openvino:threads=1", plans=16, folder=tmp_path)
    assert found.plans == 16
    assert any("conv2d" in r.name or r.name == "calls" for r in found.regions)
    assert found.predict(groups, np.ones(groups.channels, dtype=bool)) > 0


def test_too_few_networks_are_refused(tmp_path: Path) -> None:
    model = small()
    with pytest.raises(ConfigError, match="at least 16 networks"):
        profile(model, INPUTS, grouped(model), "torch", plans=3, folder=tmp_path)


class Ready:
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __enter__(self) -> "Ready":
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Machine:
    """A stopwatch that says of every network what `true` says of it."""

    def __init__(self, true: Callable[[nn.Module], float]) -> None:
        self.true = true

    def prepare(self, model: nn.Module, *_: Any) -> Ready:
        return Ready(model)

    def compare(self, models: Mapping[str, Any], **_: Any) -> dict[str, Latency]:
        found = {}
        for name, ready in models.items():
            ms = self.true(ready.model)
            found[name] = Latency(ms, ms, ms, 7, (ms,) * 7)
        return found


def first_width(model: nn.Module) -> int:
    return int(model.get_parameter("0.weight").shape[0])


def clocked(monkeypatch: pytest.MonkeyPatch, true: Callable[[nn.Module], float]) -> Any:
    """Let time be what the first layer has channels, on a machine where `true` is the truth."""
    model = small()
    groups = grouped(model)
    machine = Machine(true)
    monkeypatch.setattr(meeting, "prepare", machine.prepare)
    monkeypatch.setattr(meeting, "compare", machine.compare)
    group = groups["0"]
    numbers = np.arange(group.start, group.start + group.channels)
    (w,) = [i for i, x in enumerate(widths(groups)) if np.array_equal(x.channels, numbers)]
    region = Region("first", "", (Part(1.0, (w,), (Step(),)),))
    known = LatencyModel("torch", digest_of(groups), (region,), 24.0, 16, 0.0, 0.0)
    scores = prunella.score(model, groups)

    def allocate(budget: prunella.Budget) -> Allocation:
        found = allocate_and_bound(groups, scores, budget, latency_model=known)
        return replace(found, remarks=(f"{len(found.plan.channels['0'])} channels are left",))

    def ask(bound: float | str) -> Any:
        return meet(
            model,
            groups,
            ((INPUTS,), {}),
            prunella.Budget(latency=bound),
            known,
            allocate,
        )

    return ask


@pytest.mark.parametrize("bound", [0.5, "50%", "12ms"])
def test_what_was_mispredicted_is_asked_again(
    bound: float | str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="prunella")
    ask = clocked(monkeypatch, lambda m: 24 * (first_width(m) / 24) ** 0.7)
    found, met = ask(bound)
    plan = told(found)
    # 12 channels would be predicted to do; it takes 8 to get there: 24 * (8 / 24) ** 0.7 = 11.1
    assert len(plan.channels["0"]) in (8, 9)
    assert met.kept
    assert met.limit == pytest.approx(12)
    assert met.pruned.median_ms <= 12 * 1.02
    assert met.tries > 1
    assert "asked 12 ms" in str(met)
    said = [line for line in caplog.messages if "channels are left" in line]
    assert said == [f"{len(plan.channels['0'])} channels are left"]  # of what is carried out alone


def test_what_is_left_of_the_time_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = clocked(monkeypatch, lambda m: 24 * (first_width(m) / 24) ** 1.5)
    found, met = ask(0.5)
    assert len(found.plan.channels["0"]) in (14, 15)
    assert met.kept


def test_a_budget_that_is_not_kept_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ask = clocked(monkeypatch, lambda m: 24 if first_width(m) == 24 else 22)
    _, met = ask(0.5)
    assert not met.kept
    assert "NOT KEPT" in str(met)
    assert "is not kept" in caplog.text
    with pytest.raises(BudgetError):
        ask("0.1ms")


def test_prune_wants_a_runtime() -> None:
    with pytest.raises(ConfigError, match="name it with `runtime`"):
        prunella.prune(small(), INPUTS, latency=0.5)


@pytest.mark.parametrize(
    ("runtime", "clock"),
    [
        ("torch:threads=1", time.thread_time_ns),
        ("onnxruntime:threads=1", time.thread_time_ns),
        ("openvino:threads=1", time.process_time_ns),
        ("openvino:threads=2", time.perf_counter_ns),
        ("torch", time.perf_counter_ns),
        ("torch:device=cuda,threads=1", time.perf_counter_ns),
    ],
)
def test_a_single_thread_is_timed_by_its_work(runtime: str, clock: Callable[[], int]) -> None:
    assert clock_for(Runtime.of(runtime)) is clock


def test_few_compiled_networks_correct_the_model_of_eager_torch() -> None:
    eager = (
        Region("conv", "conv", (Part(2e-3, (0, 1), (PLAIN, Step(block=8))),)),
        Region("rest", "relu", (Part(0.3, (), ()),)),
    )
    draw = np.random.default_rng(0)
    long = draw.integers(1, 65, (20, 2))
    known = predict(eager, long)
    true = 0.5 + 0.7 * known
    samples = [Sample(row, {}, ms) for row, ms in zip(long, true.tolist(), strict=True)]
    found = fit_compiled(eager, samples[:NETWORKS])
    assert predict(found, long) == pytest.approx(true)
    slower = [Sample(row, {}, ms) for row, ms in zip(long, (2 * known).tolist(), strict=True)]
    found = fit_compiled(eager, slower[:NETWORKS])
    assert predict(found, long) == pytest.approx(2 * known)


def test_few_networks_are_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    groups = grouped(model)
    timed: list[str] = []

    def time(bench: TorchBench, plan: prunella.Plan | None) -> Sample:
        name = bench._runtime.name
        timed.append(name)
        long = lengths_of(groups, plan)
        whole = 1 + 1e-3 * float(long[0] * long[1])
        inside = dict.fromkeys(bench.places, whole / max(len(bench.places), 1))
        return Sample(long, inside, whole if name == "torch" else 0.4 + whole / 2)

    monkeypatch.setattr(TorchBench, "time", time)
    monkeypatch.setattr(latency, "disturbed", lambda fitted, samples: [])
    text = "torch-compile:threads=1"
    found = profile(model, INPUTS, groups, text, plans=16, folder=tmp_path)
    assert timed == ["torch"] * 16 + ["torch-compile"] * NETWORKS
    assert found.runtime == text
    assert found.plans == NETWORKS
    assert found.error < 0.05
    timed.clear()
    assert profile(model, INPUTS, groups, text, plans=16, folder=tmp_path) == found
    assert not timed
    eager = profile(model, INPUTS, groups, "torch:threads=1", plans=16, folder=tmp_path)
    assert not timed  # what was measured for compiled torch serves eager torch too
    assert eager.dense != found.dense


@pytest.mark.slow
def test_compiled_torch_is_profiled(tmp_path: Path) -> None:
    model = small()
    groups = grouped(model)
    found = profile(model, INPUTS, groups, "torch-compile:threads=1", plans=16, folder=tmp_path)
    assert found.plans == NETWORKS
    assert found.predict(groups, np.ones(groups.channels, dtype=bool)) > 0


@pytest.mark.parametrize("module", ["onnxruntime", "onnxscript"])
def test_what_is_not_installed_is_told_before_anything_is_measured(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    model = small()
    with pytest.raises(ConfigError, match=rf"needs `{module}`.*pip install 'prunella\[onnx\]'"):
        profile(model, INPUTS, grouped(model), "onnxruntime", folder=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        ("onnxruntime:device=cuda", "no CUDAExecutionProvider"),
        ("openvino:device=gpu", "OpenVINO sees no device `gpu`"),
        ("torch:device=xpu", "torch sees no device `xpu`"),
    ],
)
def test_a_device_that_is_not_there_is_told_before_anything_is_measured(
    runtime: str, message: str, tmp_path: Path
) -> None:
    needs(runtime.partition(":")[0])
    model = small()
    try:
        available(runtime)
    except ConfigError:
        with pytest.raises(ConfigError, match=message):
            profile(model, INPUTS, grouped(model), runtime, folder=tmp_path)
        assert not list(tmp_path.iterdir())
    else:
        pytest.skip("this machine has the device")


def test_times_that_nothing_explains_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = small()
    groups = grouped(model)
    draw = np.random.default_rng(0)

    def time(bench: TorchBench, plan: prunella.Plan | None) -> Sample:
        whole = float(draw.uniform(1, 5))
        inside = dict.fromkeys(bench.places, whole / len(bench.places))
        return Sample(lengths_of(groups, plan), inside, whole)

    monkeypatch.setattr(TorchBench, "time", time)
    profile(model, INPUTS, groups, "torch:threads=1", plans=16, folder=tmp_path)
    assert "let the machine do nothing else" in caplog.text


def test_a_folder_in_the_place_of_measurements_is_told(tmp_path: Path) -> None:
    groups = grouped(small())
    runtime = Runtime.of("torch")
    path = measurements(groups, runtime, 0, tmp_path).path
    path.unlink()
    path.mkdir()
    with pytest.raises(WorkspaceError, match="Delete it"):
        measurements(groups, runtime, 0, tmp_path)
