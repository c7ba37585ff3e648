import runpy
from pathlib import Path

import pytest
import torch

from prunella import tasks
from prunella.finetuning import Recipe, finetune

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_and_is_short(path, tmp_path, monkeypatch):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    assert list(tmp_path.iterdir()) == [], "an example leaves nothing behind"


def test_the_own_loop_heals(capsys):
    names = runpy.run_path(str(ROOT / "examples" / "own_loop.py"))
    macs = [names["prunella"].count_macs(names[m], names["images"][:1]) for m in ("model", "dense")]
    assert macs[0] <= 0.6**3 * macs[1]
    assert names["accuracy"](names["model"]) > 0.9
    assert "finetuned" in capsys.readouterr().out


def test_the_own_task_is_one_the_library_can_use():
    task = tasks.load(str(ROOT / "examples" / "own_task.py"))
    torch.manual_seed(0)
    done = finetune(task.model(), task, Recipe(epochs=1, lr=0.01, distill=0.0))
    assert 0 <= done.metric <= 1
    assert tasks.evaluate(done.model, task, "test") == pytest.approx(done.metric, abs=0.3)
