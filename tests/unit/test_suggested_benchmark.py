"""The benchmark of what `suggest` predicts, on the tiny task."""

from pathlib import Path

from benchmarks import record, suggested
from tests.quick_runs import QUICK


def test_every_budget_is_predicted_and_pruned_to(tmp_path: Path) -> None:
    settings = {key: value for key, value in QUICK.items() if key != "budget.macs"}
    rows = list(suggested.measure("tiny", settings, tmp_path))
    assert [row["budget"] for row in rows] == sorted((r["budget"] for r in rows), reverse=True)
    assert len(rows) > 3
    for row in rows:
        # The task's images are few: a prediction is off by some of them.
        assert abs(row["predicted"] - row["pruned"]) < 0.25
        assert 0 <= row["estimated"] <= 1
    record.write(rows, tmp_path / "out", suggested.PACKAGES, suggested.page)
    assert "| 50% | " in (tmp_path / "out.md").read_text()
