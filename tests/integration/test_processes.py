"""One run by two processes: one decides and writes, both finetune."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import prunella
from prunella import tasks

TASK = Path(__file__).parents[1] / "tiny_task.py"


def launch(
    folder: Path, *more: str, task: str = str(TASK), verb: str = "run"
) -> "subprocess.CompletedProcess[str]":
    # What `accelerate launch` itself starts for several accelerators; for CPUs it wants mpirun.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "prunella", verb, task]
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
    counted = launch(tmp_path, verb="stat")
    assert counted.returncode == 0, counted.stderr[-3000:]
    assert counted.stdout.count("Baseline") == 1
    assert counted.stderr.count("next: ") == 1

    refused = launch(tmp_path, "--budget.macs=0.5", "--finetune.floor=3")
    assert refused.returncode != 0
    assert refused.stderr.count("already misses the floor 3") == 1
    assert refused.stderr.count("hint:") == 1
    asked = launch(tmp_path)
    assert asked.returncode != 0
    assert asked.stderr.count("error:") == 1, asked.stderr


@pytest.mark.slow
def test_what_one_process_alone_meets_is_told_once(tmp_path: Path) -> None:
    task = tmp_path / "task.py"
    lines = ["import os", "from tests.tiny_task import *", 'assert os.environ["RANK"] == "0", "no"']
    task.write_text("\n".join(lines))
    done = launch(tmp_path / "run", "--budget.macs=0.5", task=str(task))
    assert done.returncode != 0
    assert done.stderr.count("raised at line 3: AssertionError: no") == 1, done.stderr


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


# What one of two processes meets alone: the other is not to wait for it, nor to go on without it.
ALONE = """
import errno, os, sys
from pathlib import Path
from prunella import pipeline, report
from prunella.errors import PrunellaError, WorkspaceError
from prunella.pipeline import keeping
from prunella.workspace import Workspace
from tests.quick_runs import quick

FOLDER, FIRST = Path(sys.argv[1]), os.environ["RANK"] == "0"

def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

def said(act, owner=None, name="", instead=full, **more):
    whole = getattr(owner, name, None)
    if FIRST and owner is not None:
        setattr(owner, name, instead(whole) if instead is not full else full)
    try:
        act(quick(FOLDER, **more))
        print("done", flush=True)
    except PrunellaError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    finally:
        if FIRST and owner is not None:
            setattr(owner, name, whole)

def but(part):
    def instead(whole):
        def replace(space, name, fill):
            return whole(space, name, full if name.endswith(part) else fill)
        return replace
    return instead

def refused(whole):
    def refuse(*_):
        raise WorkspaceError("not now. Free some space")
    return refuse

said(pipeline.run, Workspace, "locked", refused)
said(pipeline.run, Workspace, "replace_folder", but("finetuned"))
said(pipeline.run, report, "write", refused)
said(pipeline.run)
said(pipeline.finetune, keeping, "_copy", finetune__epochs=2)
said(pipeline.run, keeping, "_copy", finetune__floor=0.98, prune__retries=0)
said(pipeline.suggest)
said(pipeline.run)
"""


@pytest.mark.slow
def test_what_fails_in_the_first_process_alone_fails_in_both(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    own = {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ALONE, str(tmp_path / "run")],
            env={**os.environ, **there, **own, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        said = []
        for process in processes:
            out, err = process.communicate(timeout=300)
            assert process.returncode == 0, err[-3000:]
            said.append(out.splitlines())
    finally:
        for process in processes:
            process.kill()
    first, second = said
    assert [line.split(":")[0] for line in first] == [
        *("WorkspaceError", "WorkspaceError", "WorkspaceError", "done"),
        *("WorkspaceError", "WorkspaceError", "done", "done"),
    ]  # fmt: skip
    assert first == second
