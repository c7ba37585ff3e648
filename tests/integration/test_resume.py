"""A run killed at random moments ends as one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TASK = Path(__file__).parents[1] / "tiny_task.py"
SETTINGS = [
    str(TASK),
    "--task.options.pause=0.004",
    "--budget.macs=0.4",
    "--prune.rounds=2",
    "--analyze.ratios=0.25,0.5,0.75",
    "--finetune.epochs=3",
    "--finetune.trials=2",
    "--run.latency_seconds=0.1",
    "--quiet",
]
KILLS = 5


def start(folder: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "prunella", "run", *SETTINGS, "--run.folder", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(folder: Path) -> None:
    process = start(folder)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err.decode()


def look(folder: Path) -> set[tuple[str, int]]:
    """List the files of a run with their sizes; two looks differ where something was written."""
    found = set()
    for path in folder.rglob("*"):
        try:
            found.add((str(path), path.stat().st_size))
        except OSError:  # gone between the listing and the look
            continue
    return found


def kill_after(process: "subprocess.Popen[bytes]", folder: Path, writes: int, pause: float) -> bool:
    """Kill a run when it has written so often, and a moment later; False if it ended before."""
    before = look(folder)
    while process.poll() is None:
        now = look(folder)
        if now != before:
            before, writes = now, writes - 1
            if writes <= 0:
                time.sleep(pause)
                process.kill()
        time.sleep(0.005)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def ended(folder: Path) -> bool:
    record = folder / "run.json"
    return record.exists() and json.loads(record.read_text())["payload"]["outcome"] != "partial"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_killed_at_random_moments_ends_with_the_same_plan(tmp_path: Path) -> None:
    finish(tmp_path / "whole")
    chance = random.Random(1)
    folder = tmp_path / "killed"
    left = []
    for kill in range(1, KILLS + 1):
        died = kill_after(start(folder), folder, chance.randint(3, 9), chance.uniform(0, 0.15))
        assert died, f"it finished too soon to be killed {KILLS} times; left after each: {left}"
        left.append(len(look(folder)))
        assert not ended(folder), f"kill {kill} came after the end"
    finish(folder)

    for name in ("plan.json", "model.safetensors"):
        one, other = (tmp_path / each / "final" / name for each in ("whole", "killed"))
        assert one.read_bytes() == other.read_bytes(), f"{name} differs after kills at {left} files"
    one, other = (
        json.loads((tmp_path / each / "run.json").read_text())["payload"]
        for each in ("whole", "killed")
    )
    for part in ("rounds", "sensitivity", "baseline", "compressed", "epochs"):
        assert _timeless(one[part]) == _timeless(other[part]), part
    assert not list(folder.rglob(".unfinished-*"))
    assert not list(folder.rglob("*.new"))


def _timeless(value: object) -> object:
    if isinstance(value, dict):
        timed = ("seconds", "latency")
        return {key: _timeless(found) for key, found in value.items() if key not in timed}
    return [_timeless(item) for item in value] if isinstance(value, list) else value
