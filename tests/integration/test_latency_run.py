"""A run on a real task with a budget on time, by a real stopwatch: what is there, not how fast."""

import json
import re
from pathlib import Path

import pytest
import sklearn.datasets  # noqa: F401  its first import sets environment variables
from click.testing import Result
from typer.testing import CliRunner

from prunella.cli import app


def call(verb: str, folder: Path, *more: str) -> Result:
    given = [
        verb,
        "digits",
        "--budget.latency=0.7",
        "--budget.runtime=torch:threads=1",
        "--prune.rounds=1",
        "--analyze.ratios=0.5",
        "--finetune.epochs=1",
        "--finetune.trials=1",
        "--run.latency_seconds=0.2",
        "--run.threads=1",
        "--run.device=cpu",
        f"--run.folder={folder}",
    ]
    return CliRunner().invoke(app, [*given, *more], catch_exceptions=False)


@pytest.mark.slow
def test_digits_within_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PRUNELLA_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "run"
    rehearsed = call("prune", folder, "--dry-run")
    assert rehearsed.exit_code == 0, rehearsed.output
    assert "latency," in rehearsed.stdout
    assert " ms, " in rehearsed.stdout
    profile = (folder / "profile.json").read_bytes()
    (journal,) = (tmp_path / "cache/latency").iterdir()
    lines = len(journal.read_text().splitlines())

    result = call("run", folder)
    said = re.search(r"budget on latency: asked 0\.7, at most .* ms; .*", result.stderr)
    assert said is not None, result.output
    assert result.exit_code == (1 if "NOT kept" in said[0] else 0)
    assert "Latency (torch:threads=1)" in result.stdout
    assert re.search("latency, try 1: .*; asked", result.stderr)
    assert (folder / "profile.json").read_bytes() == profile
    assert len(journal.read_text().splitlines()) == lines
    record = json.loads((folder / "run.json").read_text())["payload"]
    held = record["latency_budget"]
    assert held["runtime"] == "torch:threads=1"
    assert 0 < held["predicted_ms"] <= held["limit_ms"] * 1.5
    assert record["baseline"]["latency"]["median_ms"] > 0
    assert "budget on latency" in (folder / "report.html").read_text().lower()
