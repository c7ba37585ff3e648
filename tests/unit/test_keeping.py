"""What a finished run left is not lost to another run in the same folder."""

import errno
import json
import logging
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import prunella
from prunella import pipeline, tasks
from prunella.errors import WorkspaceError
from prunella.pipeline import healing, keeping, verbs
from prunella.pipeline.exporting import Wanted, export, settings_of
from prunella.workspace import Workspace
from tests.quick_runs import TASK, quick

settings = partial(quick, budget__macs=0.7)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keeping") / "run"
    pipeline.run(settings(folder))
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def outcome(folder: Path) -> str:
    return str(json.loads((folder / "run.json").read_text())["payload"]["outcome"])


@pytest.mark.parametrize("other", [{"budget__macs": 0.5}, {"finetune__epochs": 2}])
def test_a_finished_run_is_put_aside_by_one_with_other_settings(
    folder: Path, other: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="prunella")
    weights = (folder / "final/model.safetensors").read_bytes()
    page = (folder / "report.html").read_bytes()
    pipeline.run(settings(folder, **other))
    aside = folder / "earlier/01"
    assert f"its final model and report are now in `{aside}`" in caplog.text
    size = sum(path.stat().st_size for path in aside.rglob("*") if path.is_file())
    assert f"All in `earlier` take {size / 1e6:.1f} MB" in caplog.text
    assert (aside / "final/model.safetensors").read_bytes() == weights
    assert (aside / "report.html").read_bytes() == page
    assert (folder / "final/model.safetensors").read_bytes() != weights
    assert outcome(folder) == outcome(aside) == "done"
    assert [path.name for path in (folder / "earlier").iterdir()] == ["01"]
    pipeline.run(settings(folder, **other))  # nothing is made anew
    assert [path.name for path in (folder / "earlier").iterdir()] == ["01"]


def test_a_finished_run_is_put_aside_by_one_that_ends_without_a_model(folder: Path) -> None:
    run = json.loads((folder / "run.json").read_text())["payload"]
    floor = (run["baseline"]["valid"] + run["compressed"]["valid"]) / 2
    config = settings(folder, prune__retries=0, finetune__floor=floor)
    page = (folder / "report.html").read_bytes()
    for _ in range(2):
        pipeline.run(config)
        assert outcome(folder) == "floor"
        assert outcome(folder / "earlier/01") == "done"
        assert (folder / "earlier/01/report.html").read_bytes() == page
        assert not (folder / "final").exists()
        assert [path.name for path in (folder / "earlier").iterdir()] == ["01"]


def test_what_was_put_aside_can_be_used_like_any_finished_run(folder: Path) -> None:
    pipeline.prune(settings(folder, budget__macs=0.5))
    aside = folder / "earlier/01"
    assert not (folder / "final").exists()
    assert pipeline.report(settings(aside)) == aside / "report.html"
    assert export(settings_of(aside), Wanted(to="torch-export")).exported.path.is_relative_to(aside)
    final = prunella.load(aside / "final", tasks.load(str(TASK)).model())
    assert prunella.count_macs(final, tasks.load(str(TASK)).example_inputs)


def test_a_finished_run_stays_while_nothing_is_made_anew(folder: Path) -> None:
    pipeline.analyze(settings(folder))
    pipeline.suggest(settings(folder))
    pipeline.finetune(settings(folder))
    assert outcome(folder) == "done"
    pipeline.transform(settings(folder))
    assert not (folder / "earlier").exists()


def test_a_kill_after_it_was_put_aside_leaves_something_to_report_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(healing, "search", kill)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(settings(folder, finetune__epochs=3))
    assert outcome(folder) == "partial"
    assert not (folder / "report.html").exists()
    assert "accuracy" in pipeline.report(settings(folder)).read_text()
    monkeypatch.undo()
    pipeline.run(settings(folder))  # as before: what was pruned is there, and is finetuned again
    assert [path.name for path in (folder / "earlier").iterdir()] == ["01"]
    for name in ("plan.json", "model.safetensors"):
        now, then = (folder / "final" / name, folder / "earlier/01/final" / name)
        assert now.read_bytes() == then.read_bytes()


def test_a_final_model_of_another_attempt_is_put_aside(folder: Path) -> None:
    space = Workspace(folder)
    entry = space.read("final")
    assert entry is not None
    space.write("final", {**entry.inputs, "from": "rounds/02/1"}, entry.payload)
    pipeline.transform(settings(folder))
    for name in ("final", "earlier/01/final"):
        assert (folder / name / "model.safetensors").exists()


def test_a_kill_while_it_is_put_aside_does_not_lose_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    space = Workspace(folder)
    entry = space.read("final")
    assert entry is not None
    space.write("final", {**entry.inputs, "from": "rounds/02/1"}, entry.payload)
    monkeypatch.setattr(keeping, "_copy", kill)
    with pytest.raises(KeyboardInterrupt):
        pipeline.transform(settings(folder))
    monkeypatch.undo()
    pipeline.transform(settings(folder))
    assert (folder / "earlier/01/final/model.safetensors").exists()


@pytest.mark.parametrize(
    ("method", "name"),
    [("forget", "final"), ("clear", "final"), ("clear", "report.html"), ("write", "run")],
)
def test_a_kill_after_it_was_put_aside_leaves_one_of_it_and_nothing_of_it_here(
    folder: Path, monkeypatch: pytest.MonkeyPatch, method: str, name: str
) -> None:
    whole = getattr(Workspace, method)

    def kill(space: Workspace, asked: str, *rest: Any, **more: Any) -> None:
        if asked == name:
            raise KeyboardInterrupt
        whole(space, asked, *rest, **more)

    weights = (folder / "final/model.safetensors").read_bytes()
    other = settings(folder, budget__macs=0.5)
    monkeypatch.setattr(Workspace, method, kill)
    with pytest.raises(KeyboardInterrupt):
        pipeline.prune(other)
    monkeypatch.undo()
    pipeline.prune(other)
    assert [path.name for path in (folder / "earlier").iterdir()] == ["01"]
    assert (folder / "earlier/01/final/model.safetensors").read_bytes() == weights
    assert (folder / "earlier/01/report.html").exists()
    assert outcome(folder / "earlier/01") == "done"
    assert not [left for left in ("final", "final.json", "report.html") if (folder / left).exists()]
    assert outcome(folder) == "partial"


def test_what_was_put_aside_is_not_replaced_where_an_older_one_was_removed(folder: Path) -> None:
    kept = folder / "earlier/02/final/plan.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("of another run")
    pipeline.prune(settings(folder, budget__macs=0.5))
    assert kept.read_text() == "of another run"
    assert (folder / "earlier/03/final/plan.json").exists()


def test_a_full_disk_while_it_is_put_aside_is_said_and_loses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copyfile = shutil.copyfile

    def filling(source: Path, to: Path, **more: Any) -> Any:
        if Path(source).name == "model.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return copyfile(source, to, **more)

    monkeypatch.setattr(shutil, "copyfile", filling)
    with pytest.raises(WorkspaceError, match="free some space"):
        pipeline.prune(settings(folder, budget__macs=0.5))
    assert outcome(folder) == "done"
    assert (folder / "final/plan.json").exists()
    assert (folder / "report.html").exists()


def test_a_damaged_final_model_is_made_again_in_its_place(folder: Path) -> None:
    weights = folder / "final/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:40])
    with pytest.raises(
        WorkspaceError, match=r"delete `.*final\.json` and run `prunella transform`"
    ):
        pipeline.transform(settings(folder))
    (folder / "final.json").unlink()
    pipeline.transform(settings(folder))
    assert weights.read_bytes() == whole
    assert not (folder / "earlier").exists()


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "other.py"
    text = TASK.read_text().replace("range(6)", "range(2)")
    path.write_text(text.replace('name="tiny"', 'name="other"'))
    return path


@pytest.mark.parametrize("verb", ["run", "analyze", "suggest", "prune", "stat"])
def test_another_task_is_refused(folder: Path, other: Path, verb: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")}
    with pytest.raises(
        WorkspaceError,
        match=r"run` holds the run of another task, `.*tiny_task\.py`, and `.*other\.py` would .* "
        r"Give this one a folder of its own with `--run.folder .*run-other`",
    ):
        getattr(pipeline, verb)(settings(folder, task__spec=str(other)))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")} == before


def test_another_task_is_not_exported(folder: Path, other: Path) -> None:
    with pytest.raises(WorkspaceError, match="holds the run of another task"):
        export(settings(folder, task__spec=str(other)), Wanted(to="torch-export"))


def test_a_task_that_was_changed_or_renamed_goes_on(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.py"
    shutil.copy(TASK, moved)
    assert verbs.analyze(settings(folder, task__spec=str(moved))).record.outcome == "partial"
    moved.write_text(moved.read_text().replace("range(6)", "range(2)"))
    pipeline.analyze(settings(folder, task__spec=str(moved)))
    assert verbs.stat(settings(folder, task__spec=str(moved))).record.task == "tiny"
