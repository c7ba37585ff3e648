"""The benchmark of what the analysis costs: every way on a tiny network, also after a kill."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("timm")

from benchmarks import record
from benchmarks.analysis_cost import __main__ as benchmark
from benchmarks.analysis_cost import table
from benchmarks.analysis_cost.subjects import SUBJECTS, Batch, Subject


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4))
    return nn.Sequential(*layers).eval()


def batches(model: nn.Module) -> tuple[list[Batch], list[Batch]]:
    random = torch.Generator().manual_seed(0)
    images = torch.randn(6, 50, 6, generator=random)
    with torch.no_grad():
        found = [(part, model(part).argmax(1)) for part in images]
    return found[:4], found[4:]


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny = Subject("Tiny, 200 points", net, batches, (0.3, 0.6), (8, 50), bf16=True)
    monkeypatch.setitem(SUBJECTS, "tiny", tiny)
    return tmp_path / "cost"


def run(out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, record.Row]:
    given = ["analysis_cost", "tiny", "--resume", "--out", str(out)]
    monkeypatch.setattr("sys.argv", given)
    assert benchmark.main() == 0
    return table.networks(json.loads(out.with_suffix(".json").read_text())["rows"])[
        "Tiny, 200 points"
    ]


def test_every_way_goes_on_after_a_kill(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge, calls = benchmark.Judge.__call__, []

    # One function, since a record knows the code of the function that judges.
    def counted(self: benchmark.Judge, model: nn.Module) -> float:
        calls.append(1)
        if len(calls) in deadly:
            raise KeyboardInterrupt
        return judge(self, model)

    deadly = {4}
    with monkeypatch.context() as patch:
        patch.setattr(benchmark.Judge, "__call__", counted)
        with pytest.raises(KeyboardInterrupt):
            run(out, patch)
    assert len(list(out.parent.iterdir())) == 2  # values and figures of the plain way

    calls.clear()
    deadly.clear()
    with monkeypatch.context() as patch:
        patch.setattr(benchmark.Judge, "__call__", counted)
        ways = benchmark.Analysis.ways
        patch.setattr(benchmark.Analysis, "ways", lambda self: list(ways(self))[:1])
        plain = run(out, patch)["plain"]
    assert len(calls) == 3 + 2  # three of the five were known; timed before and after
    assert len(plain["loss"]) == len(plain["accuracy"]) == 4

    found = run(out, monkeypatch)
    assert list(found) == [
        "plain",
        "estimate, 8 samples",
        "estimate, 50 samples",
        "with slopes, 8 samples",
        "with slopes, 50 samples",
        "one pass, 50 samples",
        "exact",
        "early stop",
    ]
    assert found["plain"] == plain
    assert found["exact"]["loss"] == plain["loss"]
    assert found["exact"]["accuracy"] == plain["accuracy"]
    assert {path.name for path in out.parent.iterdir()} == {"cost.json", "cost.md"}
    text = out.with_suffix(".md").read_text()
    assert text.count("| yes |") == 2
    assert "*early stop* took" in text


def test_another_number_of_the_exact_way_is_seen() -> None:
    plain = {"loss": [1.0, 2.0]}
    assert table.same({"plain": plain, "exact": {"loss": [1.0, 2.0]}})
    assert table.same({"plain": plain, "early stop": {}})
    assert not table.same({"plain": plain, "exact": {"loss": [1.0, 2.0 + 1e-9]}})
