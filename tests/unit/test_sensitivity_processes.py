"""Several processes, and batch norms recalibrated: the same numbers, the same model afterwards."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import prunella
from prunella.calibration import Calibration
from prunella.errors import ConfigError, TaskError
from prunella.sensitivity import Sensitivity, analyze
from prunella.sensitivity.recalibrating import recalibrated
from tests import oracle
from tests.models import ZOO

CASE = ZOO["residual"]
Setup = tuple[nn.Module, prunella.Groups, prunella.Scores]


@pytest.fixture(scope="module")
def setup() -> Setup:
    model = CASE.model()
    groups = prunella.couple(prunella.trace(model, CASE.inputs()))
    return model, groups, prunella.score(model, groups)


@torch.no_grad()
def chance(model: nn.Module) -> float:
    return float(model(*CASE.inputs(seed=3)).softmax(1)[:, 1].mean())


def run(setup: Setup, **options: object) -> Sensitivity:
    settings = {"metric": "chance", "higher_is_better": True, "ratios": (0.25, 0.5, 0.75)}
    return analyze(*setup, **{"evaluate": chance, **settings, **options})


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_two_processes_find_what_one_finds(setup: Setup, tmp_path: Path, memory: int) -> None:
    told: list[tuple[int, int]] = []
    calls: list[int] = []

    def judge(model: nn.Module) -> float:
        calls.append(1)
        return chance(model)

    before = oracle.state(setup[0])
    found = run(
        setup,
        evaluate=judge,
        workers=2,
        memory=memory,
        record=tmp_path / "journal",
        progress=lambda done, total: told.append((done, total)),
    )
    assert oracle.unchanged(setup[0], before)
    assert found == run(setup, memory=0)
    assert told == [(i, len(told)) for i in range(1, len(told) + 1)]

    calls.clear()
    assert run(setup, record=tmp_path / "journal", evaluate=judge) == found
    assert not calls, "everything is on record"


def test_other_processes_name_what_failed_and_what_is_done_is_kept(
    setup: Setup, tmp_path: Path
) -> None:
    mine = os.getpid()

    def fails(model: nn.Module) -> float:
        if os.getpid() != mine:
            raise ValueError("no such label")
        return chance(model)

    def killed(model: nn.Module) -> float:
        if os.getpid() != mine:
            os.kill(os.getpid(), signal.SIGKILL)
        return chance(model)

    with pytest.raises(TaskError, match="in another process failed: ValueError: no such label"):
        run(setup, workers=2, evaluate=fails)
    with pytest.raises(TaskError, match=r"ended from outside.*fewer workers"):
        run(setup, workers=2, evaluate=killed, record=tmp_path / "journal")
    assert run(setup, workers=2, record=tmp_path / "journal") == run(setup)


def test_other_processes_end_when_the_first_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "analysis.py"
    script.write_text(
        f"""
import os, time
from pathlib import Path
import prunella, torch
from tests.unit import test_sensitivity_processes as case

torch.set_num_threads(1)
first = os.getpid()

def slow(model):
    if os.getpid() != first:
        (Path({str(tmp_path)!r}) / f"{{os.getpid()}}.pid").touch()
        time.sleep(300)
    return 0.5

model = case.CASE.model()
groups = prunella.couple(prunella.trace(model, case.CASE.inputs()))
case.run((model, groups, prunella.score(model, groups)), workers=2, evaluate=slow, memory=0)
"""
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    first = subprocess.Popen([sys.executable, str(script)], env=environment)
    try:
        while len(list(tmp_path.glob("*.pid"))) < 2:
            assert first.poll() is None, "it ended before it was killed"
            time.sleep(0.05)
    finally:
        first.kill()
        first.wait()
    left = {int(path.stem) for path in tmp_path.glob("*.pid")}
    until = time.monotonic() + 30
    while (left := {each for each in left if alive(each)}) and time.monotonic() < until:
        time.sleep(0.1)
    for each in left:
        os.kill(each, signal.SIGKILL)
    assert not left, "processes went on measuring for nobody"


def alive(process: int) -> bool:
    """Say whether a process still runs; one that nobody has waited for yet does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_workers_that_cannot_be(setup: Setup) -> None:
    with pytest.raises(ConfigError, match="a whole number of processes measures, at least one"):
        run(setup, workers=0)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ConfigError, match="one thread each"):
            run(setup, workers=2)
    finally:
        torch.set_num_threads(threads)


def test_recalibrated_norms_have_the_statistics_of_the_changed_model(setup: Setup) -> None:
    model = setup[0]
    data = Calibration([(CASE.inputs(seed=i), {}) for i in range(3)])
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    before = oracle.state(model)
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in norms}
    twin = CASE.model()
    for name, norm in twin.named_modules():
        if name in norms:
            norm.train()
            norm.register_forward_hook(lambda m, i, o, name=name: seen[name].append(i[0]))
    with torch.no_grad():
        for args, _ in data.batches:
            twin(*args)
    with recalibrated(model, data, norms):
        assert not any(module.training for module in model.modules())
        for name, norm in norms.items():
            mean = torch.stack([x.mean((0, 2, 3)) for x in seen[name]]).mean(0)
            spread = torch.stack([x.var((0, 2, 3)) for x in seen[name]]).mean(0)
            torch.testing.assert_close(norm.running_mean, mean)
            torch.testing.assert_close(norm.running_var, spread)
    assert oracle.unchanged(model, before)


def test_recalibration_changes_the_numbers_the_same_way_shared_or_not(
    setup: Setup, tmp_path: Path
) -> None:
    data = Calibration([(CASE.inputs(seed=i), {}) for i in range(3)])
    before = oracle.state(setup[0])
    shared = run(setup, memory=1 << 30, recalibrate=data, record=tmp_path / "journal")
    assert oracle.unchanged(setup[0], before)
    assert shared == run(setup, memory=0, recalibrate=data)
    plain = run(setup, record=tmp_path / "journal")
    assert shared.baseline == plain.baseline
    assert shared.curves != plain.curves


class Aliased(nn.Module):
    """Calls a module by its second name."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        self.second, self.head = self.first, nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(x).relu())


def test_norms_of_two_names_are_recalibrated_once() -> None:
    torch.manual_seed(0)
    model, x = Aliased().eval(), torch.randn(32, 4)
    groups = prunella.couple(prunella.trace(model, x))
    norm = model.first[1]

    def offset(model: nn.Module) -> float:
        with torch.no_grad():
            return float(model.first(x).mean().abs())

    found = analyze(
        model,
        groups,
        prunella.score(model, groups),
        offset,
        metric="offset",
        higher_is_better=False,
        recalibrate=prunella.Calibration([((x,), {})]),
    )
    assert found.baseline > 1e-3
    assert all(value < 1e-6 for curve in found.curves.values() for value in curve)
    with recalibrated(model, prunella.Calibration([((x,), {})]), {"first.1", "second.1"}):
        assert torch.allclose(norm.running_mean, model.first[0](x).mean(0), atol=1e-6)
    assert torch.equal(norm.running_mean, torch.zeros(8))
