"""Run every row in a process of its own and write the result after each."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import prunella
from benchmarks import real_models, record
from benchmarks.real_models import ours, peer, table
from benchmarks.real_models.classifiers import EFFICIENTNET_LITE0, SQUEEZENET
from benchmarks.real_models.segmenter import ESPNET
from benchmarks.real_models.sentences import MINILM
from benchmarks.real_models.subject import Subject, judge

SUBJECTS = {
    "minilm": MINILM,
    "espnet": ESPNET,
    "efficientnet-lite0": EFFICIENTNET_LITE0,
    "squeezenet": SQUEEZENET,
}


def tools(subject: Subject) -> dict[tuple[str, str], Any]:
    """List what to call for each row, by tool and setting."""
    return {
        ("dense", ""): lambda subject, model: model,
        **{("Prunella", name): call for name, call in ours.SETTINGS.items()},
        **{("Torch-Pruning", name): call for name, call in peer.settings(subject).items()},
    }


def measure(subject: Subject, tool: str, setting: str) -> table.Row:
    """Make one row."""
    model = subject.build()
    call = tools(subject)[tool, setting]
    began = time.perf_counter()
    pruned: nn.Module = call(subject, model)
    seconds = time.perf_counter() - began
    return {
        "macs": prunella.count_macs(pruned, subject.example()),
        "params": prunella.count_params(pruned),
        "metrics": judge(subject, pruned),
        "seconds": round(seconds, 1),
        "note": subject.note,
    }


def row_of(key: str, tool: str, setting: str, options: argparse.Namespace) -> table.Row:
    """Make one row in a process of its own."""
    named = {"model": SUBJECTS[key].name, "tool": tool, "setting": setting}
    command = [sys.executable, "-m", "benchmarks.real_models", key, "--worker", tool, setting]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=options.seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return {**named, "failure": f"more than {options.seconds} seconds"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return {**named, "failure": said[0][:300]}
    row: table.Row = json.loads(lines[-1])
    return {**named, **row}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_models",
        description=real_models.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    results = Path("benchmarks") / "results" / "real-models"
    parser.add_argument("names", nargs="*", help=f"only these of: {', '.join(SUBJECTS)}")
    parser.add_argument("--out", type=Path, default=results, help="result, without its ending")
    parser.add_argument("--seconds", type=int, default=7200, help="time limit of a row")
    parser.add_argument("--resume", action="store_true", help="keep the rows --out has, but failed")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(SUBJECTS))
    if unknown:
        parser.error(f"no such model: {', '.join(unknown)}; there are {', '.join(SUBJECTS)}")
    return options


def main() -> int:
    """Run the benchmark; the exit code is 1 if one of Prunella's own rows failed."""
    options = _arguments()
    if options.worker:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        row = measure(SUBJECTS[options.names[0]], *options.worker)
        print("\n" + json.dumps(row))
        return 0
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    rows = record.read(options.out) if options.resume else []
    order = [(s.name, *key) for s in SUBJECTS.values() for key in tools(s)]
    for key, subject in SUBJECTS.items():
        if options.names and key not in options.names:
            continue
        for tool, setting in tools(subject):
            place = (subject.name, tool, setting)
            if any(_place(row) == place for row in rows):
                continue
            print(f"{subject.name}: {tool} {setting}".strip(), flush=True)
            row = row_of(key, tool, setting, options)
            print(f"  {row.get('failure') or row['metrics']}", flush=True)
            rows = sorted([*rows, row], key=lambda row: order.index(_place(row)))
            record.write(rows, options.out, table.PACKAGES, table.page)
            if tool == "dense" and "failure" in row:
                break
    failed = [row for row in rows if "failure" in row and row["tool"] != "Torch-Pruning"]
    return int(bool(failed))


def _place(row: table.Row) -> tuple[str, str, str]:
    return row["model"], row["tool"], row["setting"]


if __name__ == "__main__":
    sys.exit(main())
