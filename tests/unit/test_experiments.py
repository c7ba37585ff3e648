"""Experiments: halving by hand, kills, failures, and an exact count of epochs."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from sqlalchemy import event
from torch import Tensor, nn

from prunella.errors import ConfigError, TaskError, WorkspaceError
from prunella.experiments import Search, Space, search, spread, total_epochs
from prunella.experiments.halving import ranked, rungs
from prunella.experiments.ledger import Ledger
from prunella.finetuning import Recipe
from prunella.tasks import Metric
from tests.unit.small_task import Points, small_model, small_task

RECIPE = Recipe(epochs=4, lr=0.05, distill=0.0)
SPACE = Space(RECIPE, (0.05, 0.5, 1e-4), ("cosine", "linear"), trials=4)


def same(first: nn.Module, second: nn.Module) -> bool:
    others = second.state_dict()
    return all(torch.equal(value, others[name]) for name, value in first.state_dict().items())


def story(found: Any) -> list[tuple[Any, ...]]:
    """Everything of the experiments but the seconds."""
    return [
        (
            experiment.number,
            dict(experiment.settings),
            experiment.state,
            experiment.reason,
            experiment.epochs,
            [(epoch.loss, epoch.metric) for epoch in experiment.history],
        )
        for experiment in found.experiments
    ]


# ---- which go on


@pytest.mark.parametrize(
    ("epochs", "trials", "wanted"),
    [
        (8, 4, ((4, 2), (6, 1), (8, 1))),
        (12, 8, ((6, 4), (9, 2), (11, 1), (12, 1))),
        (4, 3, ((2, 2), (3, 1), (4, 1))),
        (3, 2, ((2, 1), (3, 1))),
        (1, 3, ((1, 3),)),
        (2, 4, ((1, 2), (2, 2))),
        (5, 1, ((5, 1),)),
    ],
)
def test_rungs(epochs: int, trials: int, wanted: Any) -> None:
    assert rungs(epochs, trials) == wanted


@pytest.mark.parametrize(
    ("epochs", "trials", "wanted"), [(8, 4, 22), (4, 3, 9), (1, 3, 3), (4, 1, 4), (4, 2, 6)]
)
def test_total_epochs(epochs: int, trials: int, wanted: int) -> None:
    assert total_epochs(epochs, trials) == wanted


def test_total_is_at_most_running_all_and_at_least_one() -> None:
    for epochs in range(1, 9):
        for trials in range(1, 9):
            assert epochs + trials - 1 <= total_epochs(epochs, trials) <= epochs * trials


def test_ranked_follows_the_metric_s_direction() -> None:
    values = {0: 0.5, 1: 0.9, 2: 0.9, 3: 0.1}
    assert ranked(values, higher_is_better=True) == [1, 2, 0, 3]
    assert ranked(values, higher_is_better=False) == [3, 0, 1, 2]


def test_points_are_the_most_promising_first() -> None:
    assert [tuple(point.values()) for point in SPACE.points] == [
        (0.05, "cosine"),
        (0.5, "cosine"),
        (0.05, "linear"),
        (1e-4, "cosine"),
    ]
    assert len(replace(SPACE, trials=99).points) == 6


def test_spread() -> None:
    assert spread(0.01, 0.09) == pytest.approx((0.03, 0.09, 0.01))
    assert spread(0.1, 0.1) == pytest.approx((0.1,))
    with pytest.raises(ConfigError, match="0 < low <= high"):
        spread(0.2, 0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trials": 0}, "trials is at least 1, got 0"),
        ({"lrs": ()}, "lrs and decays name at least one value each"),
        ({"lrs": (0.1, -1.0)}, "lrs are greater than 0, got -1.0"),
        ({"decays": ("exp",)}, "decays are among cosine, linear, step, constant, got 'exp'"),
    ],
)
def test_space_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SPACE, **change)


# ---- a whole search


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Search:
    """A search that nothing came in the way of."""
    return search(small_model(), small_task(), SPACE, folder=tmp_path_factory.mktemp("whole"))


def test_the_best_wins_and_epochs_are_counted(tmp_path: Path) -> None:
    found = search(small_model(), small_task(), SPACE, folder=tmp_path)
    states = [experiment.state for experiment in found.experiments]
    assert sorted(states) == ["complete", "stopped", "stopped", "stopped"]
    assert found.epochs == SPACE.epochs == 11
    assert [experiment.epochs for experiment in found.experiments].count(2) == 2
    best = found.experiments[found.number]
    assert best.state == "complete"
    assert best.epochs == 4
    assert found.value == best.value == found.best.metric
    assert found.recipe == replace(RECIPE, **best.settings)
    stopped = next(e for e in found.experiments if e.state == "stopped" and e.epochs == 2)
    assert "after epoch 2 its accuracy was" in stopped.reason
    assert "the best 2 had at least" in stopped.reason
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == [f"experiment-{found.number:02d}", "study.sqlite"]


def test_lower_may_be_better(tmp_path: Path) -> None:
    def mean_loss(pairs: Any) -> float:
        losses = [nn.functional.cross_entropy(outputs, batch[1]) for outputs, batch in pairs]
        return float(torch.stack(losses).mean())

    task = small_task(metric=Metric("loss", higher_is_better=False, compute=mean_loss))
    found = search(small_model(), task, SPACE, folder=tmp_path)
    assert found.experiments[3].state == "stopped"  # a learning rate of 0.0001 gets nowhere
    assert "had at most" in found.experiments[3].reason


def test_search_again_trains_nothing(tmp_path: Path) -> None:
    first = search(small_model(), small_task(), SPACE, folder=tmp_path)
    broken = Points(0)
    broken.raise_at = (2, 0)  # the first epoch is looked at, to see that the data are the same
    again = search(small_model(), small_task(broken), SPACE, folder=tmp_path)
    assert same(first.model, again.model)
    assert story(again) == story(first)
    assert again.epochs == first.epochs


class Dying:
    """A progress display that plays Ctrl-C at a given step of the whole search."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, label: str, total: int | None) -> Any:
        dying = self

        class Stage:
            def __enter__(self) -> Any:
                return self.advance if label.startswith("finetuning,") else lambda count: None

            def __exit__(self, *why: object) -> None:
                pass

            def advance(self, count: int) -> None:
                dying.left -= count
                if dying.left == 0:
                    raise KeyboardInterrupt

        return Stage()


@pytest.mark.parametrize("at", [1, 13, 33, 47])
def test_interrupted_anywhere_ends_the_same(at: int, whole: Search, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(small_model(), small_task(), SPACE, folder=tmp_path, progress=Dying(at))
    found = search(small_model(), small_task(), SPACE, folder=tmp_path)
    assert same(found.model, whole.model)
    assert story(found) == story(whole)


@pytest.mark.parametrize("write", [0, 3, 8, 9, 16])
def test_cut_off_between_two_writes_of_the_ledger(
    write: int, whole: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [write]

    def counted(real: Any) -> Any:
        def call(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return real(*arguments)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "seen", counted(Ledger.seen))
        patch.setattr(Ledger, "record", counted(Ledger.record))
        with pytest.raises(KeyboardInterrupt):
            search(small_model(), small_task(), SPACE, folder=tmp_path)
    found = search(small_model(), small_task(), SPACE, folder=tmp_path)
    assert story(found) == story(whole)
    assert same(found.model, whole.model)


def test_other_settings_begin_anew(tmp_path: Path) -> None:
    search(small_model(), small_task(), SPACE, folder=tmp_path)
    other = replace(SPACE, lrs=(0.02,), trials=2)
    found = search(small_model(), small_task(), other, folder=tmp_path)
    assert (
        "made with other settings, from another model, on other data or with another" in found.note
    )
    assert [dict(e.settings) for e in found.experiments] == list(other.points)
    again = search(small_model(5), small_task(), other, folder=tmp_path)
    assert again.note


def test_other_data_begin_anew(whole: Search, tmp_path: Path) -> None:
    data = {"train": "48 points, abc", "valid": "48 points, def"}
    with pytest.raises(KeyboardInterrupt):
        search(small_model(), small_task(), SPACE, folder=tmp_path, data=data, progress=Dying(33))
    labels = Points(0)
    labels.labels = 1 - labels.labels
    repaired = {**data, "train": "48 points, ghi"}
    found = search(small_model(), small_task(labels), SPACE, folder=tmp_path, data=repaired)
    assert "on other data or with another loss or metric: they were thrown away" in found.note
    assert found.best.resumed == SPACE.recipe.epochs  # of its own training, as in any search
    fresh = search(small_model(), small_task(labels), SPACE, folder=tmp_path / "fresh")
    assert story(found) == story(fresh) != story(whole)
    assert same(found.model, fresh.model)
    assert not search(small_model(), small_task(), SPACE, folder=tmp_path, data=repaired).note


def test_a_kill_while_experiments_are_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(small_model(), small_task(), SPACE, folder=tmp_path, progress=Dying(33))
    assert list(tmp_path.glob("experiment-*"))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            search(small_model(), small_task(), SPACE, folder=tmp_path, data={"train": "other"})
    # No training outlives the study that says which data it was made on.
    assert not list(tmp_path.glob("experiment-*"))


def test_a_damaged_study_is_named_and_the_trainings_go_on(whole: Search, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(small_model(), small_task(), SPACE, folder=tmp_path, progress=Dying(33))
    path = tmp_path / "study.sqlite"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(WorkspaceError, match=r"`.*study.sqlite` is damaged"):
        search(small_model(), small_task(), SPACE, folder=tmp_path)
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(WorkspaceError, match=r"is damaged: .*delete `.*study.sqlite` and give"):
        search(small_model(), small_task(), SPACE, folder=tmp_path)
    path.unlink()
    assert story(search(small_model(), small_task(), SPACE, folder=tmp_path)) == story(whole)


def test_own_training_loop_is_one_experiment(tmp_path: Path) -> None:
    calls = []

    def train(model: nn.Module, epochs: int) -> None:
        calls.append(epochs)

    task = replace(small_task(), train=train)
    found = search(small_model(), task, SPACE, folder=tmp_path)
    assert calls == [4]
    assert [(e.state, e.epochs) for e in found.experiments] == [("complete", 4)]


# ---- failing


def test_a_diverged_experiment_fails_alone(tmp_path: Path) -> None:
    space = Space(RECIPE, (1e30, 0.05), trials=2)
    found = search(small_model(), small_task(), space, folder=tmp_path)
    failed, complete = found.experiments
    assert failed.state == "failed"
    assert "the training has diverged" in failed.reason
    assert complete.state == "complete"
    assert found.number == 1
    assert found.epochs == failed.epochs + 4
    again = search(small_model(), small_task(), space, folder=tmp_path)
    assert story(again) == story(found)


def test_all_diverged(tmp_path: Path) -> None:
    space = Space(RECIPE, (1e30, 1e31), trials=2)
    with pytest.raises(
        TaskError,
        match=r"all 2 finetuning experiments on task `points` failed: .*diverged.*`finetune.lr`",
    ):
        search(small_model(), small_task(), space, folder=tmp_path)


def test_where_all_failed_the_same_search_tries_again(whole: Search, tmp_path: Path) -> None:
    broken = replace(small_task(), loss=lambda outputs, batch: outputs.sum() / 0)
    with pytest.raises(TaskError, match=r"failed: .*the loss is -?inf.* tries again"):
        search(small_model(), broken, SPACE, folder=tmp_path)
    # The loss is repaired, which no fingerprint tells.
    found = search(small_model(), small_task(), SPACE, folder=tmp_path)
    assert story(found) == story(whole)
    assert same(found.model, whole.model)


def test_an_own_training_loop_that_failed_is_tried_again(tmp_path: Path) -> None:
    def train(model: nn.Module, epochs: int) -> None:
        with torch.no_grad():
            next(model.parameters()).mul_(torch.nan)

    with pytest.raises(TaskError, match="the task's own training loop: the training has div") as e:
        search(small_model(), replace(small_task(), train=train), SPACE, folder=tmp_path)
    said = str(e.value)
    assert "Lower the learning rate that the loop sets" in said
    assert "step" not in said
    assert "'lr'" not in said  # it was not what the loop trained with
    task = replace(small_task(), train=lambda model, epochs: None)
    found = search(small_model(), task, SPACE, folder=tmp_path)
    assert [e.state for e in found.experiments] == ["complete"]


def test_a_broken_loader_is_no_failed_experiment(whole: Search, tmp_path: Path) -> None:
    broken = Points(0)
    broken.raise_at = (2, 1)
    with pytest.raises(TaskError, match="split `train` in epoch 2 raised at batch 1"):
        search(small_model(), small_task(broken), SPACE, folder=tmp_path)
    found = search(small_model(), small_task(), SPACE, folder=tmp_path)
    assert story(found) == story(whole)


SCRIPT = """
import sys
from pathlib import Path
import torch
from prunella.experiments import search
from safetensors.torch import save_file
from tests.unit.small_task import small_model, small_task
from tests.unit.test_experiments import SPACE

torch.set_num_threads(1)
folder = Path(sys.argv[1])
found = search(small_model(), small_task(), SPACE, folder=folder)
save_file(found.model.state_dict(), folder / "best.safetensors")
"""


@pytest.mark.slow
def test_kill_9_ends_the_same(whole: Search, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    script, folder = tmp_path / "search.py", tmp_path / "cut"
    script.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), str(folder)]
    for seen in ("experiment-00", "experiment-02"):
        process = subprocess.Popen(command, env=environment)
        while not (folder / seen).exists():
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, env=environment, check=True)
    found = search(small_model(), small_task(), SPACE, folder=folder)
    assert story(found) == story(whole)
    best = load_file(folder / "best.safetensors")
    assert all(torch.equal(value, best[key]) for key, value in whole.model.state_dict().items())


def test_what_optuna_logs_is_put_back(tmp_path: Path) -> None:
    def refuse(split: str) -> Tensor:
        raise RuntimeError("no data today")

    before = optuna.logging.get_verbosity()
    bad = replace(small_task(), data=refuse)
    with pytest.raises(TaskError, match="cannot open split `train`: RuntimeError: no data today"):
        search(small_model(), bad, SPACE, folder=tmp_path)
    assert optuna.logging.get_verbosity() == before


def test_a_full_disk_met_by_the_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, {}, ({"lr": 0.1},), higher_is_better=True)
    try:
        with ledger._storage.engine.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        limit = f"PRAGMA max_page_count = {pages}"
        event.listen(ledger._storage.engine, "connect", lambda db, _: db.execute(limit))
        ledger._storage.engine.dispose()
        with (
            pytest.raises(WorkspaceError, match=r"cannot use `.*database or disk is full.*Free"),
            ledger.guarded(),
        ):
            ledger._study.set_user_attr("large", "x" * 100_000)
    finally:
        ledger.close()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WorkspaceError, match=r"cannot write in `.*file/search`.*Not a directory"):
        search(small_model(), small_task(), SPACE, folder=tmp_path / "file" / "search")
