"""Measure the points of one method in a process of its own; rows come as they are made."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

import prunella
from benchmarks.accuracy import training
from benchmarks.accuracy.case import Case, Method, accuracy, joined, problem, recalibrated
from benchmarks.accuracy.rows import SCREEN, Point, trained
from benchmarks.record import Row

_MARK = "ROW "


def measure(case: Case, method: Method, points: dict[Point, bool]) -> Iterator[Row]:
    """Prune for every budget among the points, and measure each point."""
    test = joined(problem(case.network).data("test")) if any(points.values()) else None
    case = replace(case, budgets=tuple(sorted({removed for removed, _ in points})))
    began, waited = time.perf_counter(), 0.0
    for removed, model in method.run(case):
        seconds = time.perf_counter() - began - waited
        for bn in (False, True):
            if (removed, bn) not in points:
                continue
            tested = points[removed, bn]
            images = case.images if tested else case.images[:SCREEN]
            found = recalibrated(model, images, case.seed) if bn else model
            row: Row = {
                "network": case.network,
                "tool": method.tool,
                "setting": method.setting,
                "bn": bn,
                **trained(method),
                "removed": removed,
                "seed": case.seed,
                "macs": prunella.count_macs(found, case.example),
                "params": prunella.count_params(found),
                "images": len(case.labels) if bn or method.looks_at else 0,
                "seconds": round(seconds, 1),
            }
            if removed and row["macs"] > case.limit(removed):
                raise RuntimeError(f"{row['macs']:,} MACs are more than the budget")
            if method.training is not None:
                found, told = training.trained(case, found, method, removed)
                row |= told
            if not tested:
                row["screened"] = accuracy(found, images, case.labels[:SCREEN])
            else:
                assert test is not None, "one of the points is to be tested"
                row["accuracy"] = accuracy(found, *test)
                if method.tool == "dense":
                    row["accuracy, float32"] = accuracy(found, *test, bf16=False)
            yield row
        waited = time.perf_counter() - began - seconds


def spoken(row: Row) -> None:
    """Print a row for the process that waits for it."""
    print(_MARK + json.dumps(row), flush=True)


def listen(command: list[str], seconds: int) -> Iterator[Row]:
    """Run a command that speaks rows, and yield them.

    Raises:
        RuntimeError: It failed or took too long; the message is the last thing it said.
    """
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=quiet
        ) as process,
    ):
        alarm = threading.Timer(seconds, process.kill)
        alarm.start()
        try:
            assert process.stdout is not None, "it is a pipe"
            for line in process.stdout:
                if line.startswith(_MARK):
                    yield json.loads(line.removeprefix(_MARK))
            code = process.wait()
        finally:
            late = alarm.finished.is_set()
            alarm.cancel()
            process.kill()
        if code:
            errors.seek(0)
            said = errors.read().strip().splitlines()[-1:] or [f"exit code {code}"]
            raise RuntimeError(f"more than {seconds} seconds" if late else said[0][:300])


def worker(*options: Any) -> list[str]:
    """Return the command that starts this program again for one job."""
    return [sys.executable, "-m", "benchmarks.accuracy", *map(str, options)]


def settle(seed: int) -> None:
    """Make a worker's process what every row is measured in."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
