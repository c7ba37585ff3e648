"""One run by two processes: one decides and writes, both finetune."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import prunella
from prunella import tasks

TASK = Path(__file__).parents[1] / "tiny_task.py"


def launch(folder: Path, *more: str, task: str = str(TASK)) -> "subprocess.CompletedProcess[str]":
    # What `accelerate launch` itself starts for several accelerators; for CPUs it wants mpirun.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "prunella", "run", task]
    command += ["--prune.rounds=1", "--analyze.ratios=0.5", "--finetune.epochs=2"]
    command += ["--finetune.trials=2", "--run.latency_seconds=0.05"]
    return subprocess.run(
        [*command, "--run.folder", str(folder), *more],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


@pytest.mark.slow
def test_two_processes_make_one_run(tmp_path: Path) -> None:
    done = launch(tmp_path, "--budget.macs=0.5")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Baseline") == 1
    assert done.stderr.count("tracing tiny") == 1
    record = json.loads((tmp_path / "run.json").read_text())["payload"]
    assert record["outcome"] == "done"
    assert record["epochs"] == 3
    task = tasks.load(str(TASK))
    model = prunella.load(tmp_path / "final", task.model())
    assert tasks.evaluate(model, task, "test") == record["compressed"]["test"]

    refused = launch(tmp_path, "--budget.macs=0.5", "--finetune.floor=3")
    assert refused.returncode != 0
    assert "already misses the floor 3" in refused.stderr


@pytest.mark.slow
def test_two_processes_keep_to_the_clock_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNELLA_CACHE", str(tmp_path / "cache"))
    timed = ("--budget.latency=0.8", "--budget.runtime=torch:threads=1", "--run.threads=1")
    done = launch(tmp_path / "run", *timed, task="digits")
    assert (tmp_path / "run" / "run.json").exists(), done.stderr[-3000:]
    held = json.loads((tmp_path / "run" / "run.json").read_text())["payload"]["latency_budget"]
    assert done.returncode == int("NOT kept" in done.stderr), done.stderr[-3000:]
    assert done.stderr.count("profiling digits") == 1
    assert held["predicted_ms"] <= held["limit_ms"] * 1.5
