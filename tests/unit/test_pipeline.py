"""The stages and the loop: what is reused, what is made again, what is accepted."""

import dataclasses
import logging
import random
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import prunella
from prunella import pipeline, tasks
from prunella.config import load
from prunella.costs import count_activation_bytes, count_weight_bytes
from prunella.errors import BudgetError, ConfigError, TaskError, WorkspaceError
from prunella.finetuning.fingerprints import data_digest
from prunella.model.examples import samples_in
from prunella.pipeline import exporting, healing, planning, rounds, stages, suggesting, verbs
from prunella.pipeline.context import Context, share_of
from prunella.pipeline.judging import floor_of
from prunella.pipeline.repairing import inputs_of, ranking
from prunella.pipeline.slots import Slot, attempts
from prunella.pipeline.splits import look_at_splits
from prunella.record import RunRecord
from prunella.workspace import Entry
from tests.quick_runs import TASK, quick

settings = partial(quick, prune__rounds=2)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pipeline.Result]:
    folder = tmp_path_factory.mktemp("runs") / "done"
    return folder, pipeline.run(settings(folder))


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="prunella")
    return caplog


def test_rounds_leave_equal_shares_of_the_rest() -> None:
    budget = {"macs": 0.5}
    step = rounds.first_step(budget, 3)
    reached, targets = {"macs": 1.0}, []
    while reached != budget:
        reached = rounds.schedule(reached, step, budget)
        targets.append(reached["macs"])
    assert targets == pytest.approx([0.7937, 0.63, 0.5], abs=1e-4)
    assert targets[-1] == 0.5


def test_two_budgets_are_met_together() -> None:
    budget = {"macs": 0.5, "params": 0.8}
    step = rounds.first_step(budget, 2)
    first = rounds.schedule(dict.fromkeys(budget, 1.0), step, budget)
    assert first["macs"] == pytest.approx(0.5**0.5)
    assert first["params"] == pytest.approx(0.8**0.5)
    assert rounds.schedule(first, step, budget) == budget


def test_a_smaller_step_is_half_of_it() -> None:
    step = {"macs": 0.25}
    half = rounds.smaller(step)
    assert half["macs"] * half["macs"] == pytest.approx(0.25)


def test_a_run_ends_within_its_budget(done: tuple[Path, pipeline.Result]) -> None:
    folder, result = done
    record = result.record
    assert record.outcome == "done"
    assert record.compressed is not None
    assert record.compressed.macs <= 0.5 * record.baseline.macs
    assert record.compressed.test is not None
    assert record.certificate is not None
    assert record.certificate.error < 1e-9
    assert record.epochs == 2
    assert [found.number for found in record.rounds] == [1, 2]
    assert (folder / "report.html").stat().st_size > 1000
    assert set(record.stages) == {"baseline", "analyze", "prune", "finetune", "transform", "test"}


def test_the_result_loads_into_the_users_class(done: tuple[Path, pipeline.Result]) -> None:
    folder, result = done
    assert result.record.compressed is not None
    task = tasks.load(str(TASK))
    fresh = type(task.model())()
    model = prunella.load(folder / "final", fresh)
    assert type(model) is type(fresh)
    assert prunella.count_macs(model, task.example_inputs) == result.record.compressed.macs
    assert tasks.evaluate(model, task, "test") == result.record.compressed.test


def test_the_same_run_again_makes_nothing_anew(
    done: tuple[Path, pipeline.Result], said: pytest.LogCaptureFixture
) -> None:
    folder, result = done
    plan = (folder / "final/plan.json").stat()
    again = pipeline.run(settings(folder))
    assert again.record == result.record
    assert (folder / "final/plan.json").stat().st_mtime_ns == plan.st_mtime_ns
    for stage in ("baseline", "sensitivity", "prune", "finetune", "final", "test"):
        assert re.search(rf"reusing .*/{stage}\.json", said.text), stage
    assert "again:" not in said.text


def test_test_data_are_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[str] = []
    real = Context.evaluate

    def watch(self: Context, model: torch.nn.Module, split: tasks.Split) -> float:
        judged.append(split)
        return real(self, model, split)

    monkeypatch.setattr(Context, "evaluate", watch)
    for _ in range(2):
        pipeline.run(settings(tmp_path / "run"))
    assert judged.count("test") == 2  # the dense and the final model, in the first run
    assert judged.index("test") == len(judged) - 2


def test_what_an_earlier_run_went_on_to_is_no_part_of_a_shorter_one(tmp_path: Path) -> None:
    for share in (0.7, 0.5):
        verbs.prune(settings(tmp_path, budget__macs=share))
        verbs.finetune(settings(tmp_path, budget__macs=share))
    pipeline.run(settings(tmp_path, budget__macs=0.7, prune__rounds=1))
    space = Context(settings(tmp_path)).space
    assert [attempt.slot for attempt in attempts(space)] == [Slot(1, 1)]


def test_the_seed_decides_which_inputs_repair(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    pipeline.run(settings(tmp_path, prune__rounds=1))
    said.clear()
    pipeline.run(settings(tmp_path, prune__rounds=1, run__seed=5))
    assert "seed" in said.text
    assert "round 1: pruning" in said.text


def test_a_changed_setting_is_the_reason(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    pipeline.analyze(settings(tmp_path))
    pipeline.analyze(settings(tmp_path, prune__exclude=("conv1",)))
    assert 'sensitivity.json` again: the settings.exclude ([] -> ["conv1"]) changed' in said.text
    assert "baseline.json` again" not in said.text


OWN = """
from dataclasses import replace

from prunella.tasks import Metric
from tests import tiny_task


def share(pairs):
    found = [float((out.argmax(1) == batch[1]).float().mean()) for out, batch in pairs]
    return METRIC * sum(found) / len(found)


def task():
    base = tiny_task.task()
    loss = lambda outputs, batch: LOSS * base.loss(outputs, batch)
    return replace(base, loss=loss, metric=Metric("share", True, share))
"""


KEEPING = """
from dataclasses import replace

from tests import tiny_task


class Own:
    def __init__(self):
        self.base, self.splits = tiny_task.task(), {}

    def data(self, split):
        return self.splits.setdefault(split, self.base.data(split))

    def loss(self, outputs, batch):
        return self.base.loss(outputs, batch)


own = Own()
task = replace(own.base, data=own.data, loss=own.loss)
"""


def test_functions_are_told_apart_as_the_task_was_loaded(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(KEEPING)
    one, other = (
        Context(settings(tmp_path / "run", task__spec=str(tmp_path / "own.py"))) for _ in range(2)
    )
    look_at_splits(one, "train", "valid")  # as some verbs do first, and others do not
    assert one.code == other.code


def test_a_changed_metric_or_loss_makes_anew_what_depends_on_it(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    def run(metric: str, loss: str) -> RunRecord:
        said.clear()
        (tmp_path / "own.py").write_text(OWN.replace("METRIC", metric).replace("LOSS", loss))
        given = {"task__spec": str(tmp_path / "own.py"), "prune__rounds": 1}
        return pipeline.run(settings(tmp_path / "run", **given)).record

    first = run("1.0", "1.0")
    assert run("1.0", "1.0").rounds == first.rounds
    assert "again" not in said.text
    half = run("0.5", "1.0")
    assert "baseline.json` again: the code.metric changed" in said.text
    assert "sensitivity.json` again: the code.metric changed" in said.text
    assert half.baseline.valid == first.baseline.valid / 2
    assert half.baseline.test == first.baseline.test / 2
    for name, curve in half.sensitivity.curves.items():
        assert curve == tuple(value / 2 for value in first.sensitivity.curves[name])
    assert half.rounds[0].attempts[0].metric <= 0.5
    assert half.rounds[0].attempts[0].pruned_metric <= 0.5
    other = run("0.5", "0.5")
    assert "sensitivity.json` again" not in said.text
    assert "finetune.json` again: the code.training changed" in said.text
    assert other.sensitivity == half.sensitivity
    losses = [found.rounds[0].attempts[0].experiments[0].epochs[0].loss for found in (half, other)]
    assert losses[1] < losses[0]


def test_changed_data_are_warned_about(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    pipeline.analyze(settings(tmp_path))
    result = pipeline.analyze(settings(tmp_path, task__options={"seed": 1}))
    assert "the data changed since the baseline was recorded" in said.text
    assert any("the data changed" in note for note in result.record.notes)


def test_verbs_by_hand(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    result = pipeline.analyze(settings(tmp_path))
    assert result.next.startswith("prunella prune --task.spec ")
    assert result.record.sensitivity is not None
    assert result.record.compressed is None

    result = pipeline.prune(settings(tmp_path, budget__macs=0.7))
    assert "round 1 is pruned" in result.text
    assert result.record.compressed is not None
    assert result.record.compressed.macs <= 0.7 * result.record.baseline.macs
    pipeline.prune(settings(tmp_path, budget__macs=0.8))  # not finetuned yet: the same round anew
    assert "target.macs (0.7 -> 0.8) changed" in said.text

    result = pipeline.finetune(settings(tmp_path))
    assert "transform" in result.next
    again = pipeline.prune(settings(tmp_path, budget__macs=0.8))
    assert "round 1 is pruned" in again.text
    pipeline.prune(settings(tmp_path, budget__macs=0.5))
    assert "round 2: pruning to 50.0% of the MACs" in said.text
    result = pipeline.finetune(settings(tmp_path))
    assert [len(found.attempts) for found in result.record.rounds] == [1, 1]

    result = pipeline.transform(settings(tmp_path))
    assert result.record.outcome == "done"
    assert result.record.compressed is not None
    assert result.record.compressed.test is not None
    assert result.record.compressed.macs <= 0.5 * result.record.baseline.macs
    assert pipeline.report(settings(tmp_path)).name == "report.html"


def test_a_round_that_is_not_finetuned_is_no_part_of_the_final_model(tmp_path: Path) -> None:
    pipeline.prune(settings(tmp_path, budget__macs=0.7))
    pipeline.finetune(settings(tmp_path))
    finished = pipeline.transform(settings(tmp_path)).record
    pipeline.prune(settings(tmp_path, budget__macs=0.5))
    again = pipeline.transform(settings(tmp_path)).record
    assert [len(found.attempts) for found in again.rounds] == [1, 1]
    assert finished.compressed is not None
    assert again.compressed is not None
    for figure in ("macs", "params", "valid", "test"):
        assert getattr(again.compressed, figure) == getattr(finished.compressed, figure), figure
    assert again.groups == finished.groups
    assert again.certificate == finished.certificate


def test_a_run_that_was_cut_off_can_be_reported_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = rounds.heal

    def cut_off(context: Context, slot: Slot, *more: Any, last: bool) -> Entry:
        if slot.round == 2:
            raise KeyboardInterrupt
        return real(context, slot, *more, last=last)

    monkeypatch.setattr(rounds, "heal", cut_off)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(settings(tmp_path))
    assert "Round 1" in pipeline.report(settings(tmp_path)).read_text()
    entry = verbs.Workspace(tmp_path).read("run")
    assert entry is not None
    record = RunRecord.from_data(entry.payload)
    assert record.outcome == "partial"
    assert record.sensitivity is not None
    assert [found.number for found in record.rounds] == [1]
    assert record.compressed is not None
    assert record.compressed.macs == record.rounds[0].attempts[0].macs

    # The same again, over a run that had ended: nothing of its end is shown beside other settings.
    monkeypatch.undo()
    pipeline.run(settings(tmp_path))
    monkeypatch.setattr(healing, "search", lambda *_, **__: cut_off(None, Slot(2, 1), last=True))
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(settings(tmp_path, finetune__last_epochs=2))
    entry = verbs.Workspace(tmp_path).read("run")
    assert entry is not None
    record = RunRecord.from_data(entry.payload)
    assert record.outcome == "partial"
    assert [len(found.attempts) for found in record.rounds] == [1, 1]
    assert record.rounds[1].attempts[0].metric is None
    assert record.compressed is not None
    assert record.compressed.test is None
    assert record.compressed.latency is None


def test_experiments_are_told_what_they_are_made_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}

    def stop(*_: Any, **given: Any) -> None:
        told.update(given)
        raise KeyboardInterrupt

    monkeypatch.setattr(healing, "search", stop)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(settings(tmp_path))
    task = tasks.load(str(TASK))
    assert told["data"] == {
        **{split: data_digest(task, split) for split in ("train", "valid")},
        "metric": tasks.code_of(task.metric.compute, task.inputs),
        "training": tasks.code_of(task.loss, None, task.inputs),
    }


def test_the_caller_s_random_generators_are_left_alone(tmp_path: Path) -> None:
    def state() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    shuffled = tmp_path / "shuffled.py"  # a task that draws, as one with a DataLoader does
    shuffled.write_text(
        TASK.read_text().replace(
            "        order = torch.arange(len(self.labels))\n",
            "        import random\n"
            "        import numpy\n"
            "        random.random(), numpy.random.rand(), torch.rand(1)\n"
            "        order = torch.arange(len(self.labels))\n",
        )
    )
    config = settings(tmp_path / "run", task__spec=str(shuffled), prune__rounds=1)
    before = state()
    for verb in (pipeline.stat, pipeline.suggest, pipeline.rehearse, pipeline.run, pipeline.stat):
        verb(config)
        assert state() == before, verb.__name__


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("digits --budget.macs 0.05 --run.seed 1", "digits --run.seed=1 --budget.macs 60%"),
        ("--budget.macs=0.05 'my task.py'", "'my task.py' --budget.macs 60%"),
        ("digits --budget.params 0.5", "digits --budget.params=0.5 --budget.macs 60%"),
        ("", "--budget.macs 60%"),
    ],
)
def test_a_suggested_setting_takes_the_place_of_the_typed_one(
    typed: str, wanted: str, tmp_path: Path
) -> None:
    context = Context(settings(tmp_path), typed=typed)
    found = context.command("prune", **{"budget.macs": "60%"})
    assert found == f"prunella prune {wanted}"
    assert context.command("prune") == f"prunella prune {typed}".strip()


def test_stat_needs_no_folder(tmp_path: Path) -> None:
    result = pipeline.stat(settings(tmp_path / "none"))
    assert sum(result.layers.values()) == result.record.baseline.macs
    assert not (tmp_path / "none").exists()
    assert [group.name for group in result.record.frozen] == ["head"]


def test_stat_of_a_pruned_run(done: tuple[Path, pipeline.Result]) -> None:
    result = pipeline.stat(settings(done[0]))
    assert result.record.compressed is not None
    assert sum(result.layers.values()) == result.record.compressed.macs


def test_masked_training_ends_with_a_pruned_model(tmp_path: Path) -> None:
    result = pipeline.run(settings(tmp_path, finetune__masked=True))
    assert result.record.compressed is not None
    assert result.record.compressed.macs <= 0.5 * result.record.baseline.macs


def test_several_experiments_are_recorded(tmp_path: Path) -> None:
    result = pipeline.run(
        settings(tmp_path, prune__rounds=1, finetune__trials=3, finetune__epochs=2)
    )
    attempt = result.record.rounds[0].accepted
    assert attempt is not None
    assert len(attempt.experiments) == 3
    assert [each.best for each in attempt.experiments].count(True) == 1
    assert {each.state for each in attempt.experiments} == {"complete", "stopped"}
    assert result.record.epochs == sum(len(each.epochs) for each in attempt.experiments)
    assert not list(tmp_path.rglob("experiment-*")), "checkpoints of a finished search are litter"


def test_a_missed_floor_is_tried_again_with_smaller_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The real rounds, with a floor that only small reductions meet.
    real = rounds.judge

    def strict(context: Context, slot: Slot, tuned: Any, baseline: Any) -> Any:
        entry = real(context, slot, tuned, baseline)
        pruned = context.space.read(slot.record("prune"))
        assert pruned is not None
        if pruned.payload["target"]["macs"] < 0.6:
            payload = {"accepted": False, "reason": "too much at once"}
            context.space.write(slot.record("verdict"), entry.inputs, payload)
            return context.space.read(slot.record("verdict"))
        return entry

    monkeypatch.setattr(rounds, "judge", strict)
    config = settings(tmp_path, budget__macs=0.25, prune__retries=1)
    result = pipeline.run(config)
    targets = [
        [round(attempt.target["macs"], 3) for attempt in found.attempts]
        for found in result.record.rounds
    ]
    assert targets == [[0.5, 0.707], [0.5]]
    assert [[a.accepted for a in found.attempts] for found in result.record.rounds] == [
        [False, True],
        [False],
    ]
    assert result.record.outcome == "floor"
    assert result.record.compressed is not None
    assert 0.6 < result.record.compressed.macs / result.record.baseline.macs <= 0.708
    assert any("the budget was not met" in note for note in result.record.notes)


def test_a_floor_nothing_meets_leaves_the_model(tmp_path: Path) -> None:
    config = settings(
        tmp_path,
        budget__macs=0.1,
        prune__rounds=1,  # at once: half of the way might meet it
        prune__retries=0,
        finetune__max_drop=0.0,
        finetune__lr=(1e-6,),
    )
    result = pipeline.run(config)
    assert result.record.outcome == "floor"
    assert result.record.compressed is None
    assert "no round met the floor" in result.text
    assert not (tmp_path / "final").exists()


def test_a_floor_above_the_dense_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"already misses the floor 1\.5"):
        pipeline.run(settings(tmp_path, finetune__floor=1.5))


def test_a_budget_that_cannot_be_met_is_said_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="the smallest possible leaves"):
        pipeline.run(settings(tmp_path, budget__macs=0.001))
    assert not list(tmp_path.glob("*.json"))


def test_verbs_out_of_order(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"nothing is pruned yet .*prunella prune --task"):
        pipeline.finetune(settings(tmp_path))
    with pytest.raises(WorkspaceError, match="nothing to transform"):
        pipeline.transform(settings(tmp_path))
    with pytest.raises(WorkspaceError, match="no run to report on"):
        pipeline.report(settings(tmp_path / "none"))


def test_excluding_an_unknown_layer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`exclude` entry 'convv1' matches no module"):
        pipeline.analyze(settings(tmp_path, prune__exclude=("convv1",)))


def test_a_damaged_file_of_the_run_is_named(done: tuple[Path, pipeline.Result]) -> None:
    path = done[0] / "rounds/01/1/finetuned/model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    try:
        with pytest.raises(
            WorkspaceError,
            match=r"01/1/finetuned/model\.safetensors` is damaged.*`prunella finetune`",
        ):
            pipeline.run(settings(done[0]))
    finally:
        path.write_bytes(whole)


def test_a_plan_of_another_model_in_the_folder(
    done: tuple[Path, pipeline.Result], tmp_path: Path
) -> None:
    other = tmp_path / TASK.name  # another file of that name is taken for a change of the task
    other.write_text(
        TASK.read_text()
        .replace("Conv2d(12, 16, 3", "Conv2d(12, 24, 3")
        .replace("BatchNorm2d(16)", "BatchNorm2d(24)")
        .replace("Conv2d(16, 12, 3", "Conv2d(24, 12, 3")
    )
    with pytest.raises(prunella.PrunellaError, match="structure"):
        pipeline.stat(settings(done[0], task__spec=str(other)))


def test_a_loader_that_raises_loses_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    text = TASK.read_text()
    broken.write_text(
        text.replace(
            "            time.sleep(self.pause)\n",
            "            if self.shuffled and self.epoch > 1:\n"
            '                raise OSError("the disk of images is gone")\n',
        ).replace("for epoch in range(6)", "for epoch in range(1)")
    )
    folder = tmp_path / "run"
    config = settings(folder, task__spec=str(broken), finetune__epochs=2)
    with pytest.raises(TaskError, match="in epoch 2 raised at batch 0: OSError: the disk of"):
        pipeline.run(config)
    assert [attempt.tuned for attempt in attempts(verbs.Workspace(folder))] == [None]
    assert list(folder.rglob("epoch-0001.safetensors"))


def test_a_run_within_several_budgets(tmp_path: Path) -> None:
    bounds = {"budget__weight_bytes": 0.6, "budget__activation_bytes": 0.8, "budget__macs": 0.9}
    result = pipeline.run(settings(tmp_path / "run", prune__rounds=1, **bounds))
    context = Context(settings(tmp_path / "run", **bounds))
    final = prunella.load(tmp_path / "run/final", context.dense)
    assert count_weight_bytes(final) <= 0.6 * count_weight_bytes(context.dense)
    assert context.costs.activation_bytes is not None
    assert count_activation_bytes(final, context.example) <= 0.8 * context.costs.activation_bytes
    assert set(result.record.budget) == {"macs", "weight_bytes", "activation_bytes"}


def test_a_metric_that_breaks_with_one_group_cut_does_not_end_the_run(
    tmp_path: Path, said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, calls = Context(settings(tmp_path)).task, iter(range(1000))

    def fragile(pairs: Any) -> float:
        value = task.metric.compute(pairs)
        return value / (next(calls) != 2)  # the baseline, its sensitivity, the first cut

    metric = dataclasses.replace(task.metric, compute=fragile)
    odd = dataclasses.replace(task, metric=metric)
    monkeypatch.setattr(Context, "task", odd)
    result = pipeline.run(settings(tmp_path))
    assert result.record.outcome == "done"
    values = [v for curve in result.record.sensitivity.curves.values() for v in curve]
    assert values.count(None) == 1
    assert said.text.count("no finite number with some groups cut") == 1
    assert sum("no finite number with some groups cut" in n for n in result.record.notes) == 1
    assert "A cross: the metric was no finite number" in (tmp_path / "report.html").read_text()
    again = pipeline.run(settings(tmp_path))
    assert again.record.sensitivity == result.record.sensitivity
    assert again.record.notes == result.record.notes


def test_repair_leaves_less_to_be_finetuned(
    done: tuple[Path, pipeline.Result], tmp_path: Path
) -> None:
    bare = settings(tmp_path / "bare", prune__repair=False, prune__criterion="random")
    pipeline.prune(bare)
    one = settings(tmp_path / "repaired", prune__criterion="random")
    pipeline.prune(one)
    context = Context(one)
    before, after = (
        context.evaluate(prunella.load(folder / "rounds/01/1/pruned", context.dense), "valid")
        for folder in (tmp_path / "bare", tmp_path / "repaired")
    )
    assert after >= before
    assert len(inputs_of(context).batches) >= 1
    # The same inputs in every process and after every kill.
    one_time, other = inputs_of(context).batches, inputs_of(Context(one)).batches
    assert all(torch.equal(a[0][0], b[0][0]) for a, b in zip(one_time, other, strict=True))


def test_by_a_named_criterion_it_is_measured_what_repair_leaves(tmp_path: Path) -> None:
    """As the pruned model is repaired, so is every cut that the sensitivity is measured with."""
    found = {}
    for repair in (True, False):
        context = Context(
            settings(tmp_path / str(repair), prune__repair=repair, prune__criterion="random")
        )
        ranked = ranking(context, context.dense, context.groups)
        assert ranked.scores.criterion == "random"
        lost = []
        for group in context.groups:
            half = np.argsort(ranked.scores.values[group.name])[: group.channels // 2]
            with ranked.cut(context.dense, context.groups, {group.name: half}) as cut:
                lost.append(context.evaluate(cut, "valid"))
        found[repair] = np.mean(lost)
    assert found[True] > found[False] + 0.05


@pytest.mark.parametrize(
    "inputs",
    [
        lambda batch: ({"deep": [batch[0]]},),
        lambda batch: (torch.tensor(1.0), {"deep": (batch[0],)}),
        lambda batch: (torch.tensor(1.0), batch[0], 3),
    ],
)
def test_samples_of_nested_inputs_are_counted(tmp_path: Path, inputs: Any) -> None:
    context = Context(settings(tmp_path, prune__calibration=40))
    task = dataclasses.replace(tasks.load(str(TASK)), inputs=inputs)
    example = tasks.positional(task, next(iter(task.data("train"))))
    context.task = dataclasses.replace(task, example_inputs=example)
    assert len(inputs_of(context).batches) == 2  # of 32 each
    drawn = suggesting._samples(context, 40).batches
    assert [samples_in(batch) for batch in drawn] in ([32, 8], [32])
    assert len(exporting._data(context, "train", None).batches) == 8  # all, for there are few


def test_a_training_loop_of_the_users_own(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        TASK.read_text()
        + """

def mine(model: nn.Module, epochs: int) -> None:
    assert model.training
    with torch.no_grad():
        model.head.bias += epochs


_stated = task


def task() -> Task:
    import dataclasses

    return dataclasses.replace(_stated(), train=mine)
"""
    )
    # Repair, too, would change the bias.
    more: dict[str, Any] = {"task__spec": str(own), "finetune__epochs": 3, "prune__repair": False}
    config = settings(tmp_path / "run", **more)
    result = pipeline.run(config)
    dense = Context(config).task.model().head.bias
    assert isinstance(dense, torch.Tensor)
    fresh = Context(config).task.model()
    healed = prunella.load(tmp_path / "run/final", fresh)
    assert torch.allclose(healed.head.bias, dense + 6)  # two rounds of three epochs
    assert result.record.epochs == 6


@pytest.mark.parametrize(("higher", "floor"), [(True, 0.75), (False, 0.85)])
def test_a_drop_is_for_the_worse(tmp_path: Path, higher: bool, floor: float) -> None:
    context = Context(settings(tmp_path, finetune__max_drop=0.05))
    metric = tasks.Metric("score", higher, lambda pairs: 0.0)
    context.task = dataclasses.replace(tasks.load(str(TASK)), metric=metric)
    assert floor_of(context, Entry({}, {"valid": 0.8})) == pytest.approx(floor)


def test_a_share_of_the_data() -> None:
    task = tasks.load(str(TASK))
    some = share_of(task, "valid", 0.6)
    assert [len(list(some.data("valid"))) for _ in range(2)] == [3, 3]
    assert share_of(task, "valid", 1.0) is task


@pytest.mark.parametrize("split", ["train", "valid"])
def test_every_model_is_judged_on_the_same_samples(tmp_path: Path, split: tasks.Split) -> None:
    pictures = TensorDataset(torch.arange(64).float(), torch.zeros(64))
    own = torch.Generator()  # which no seed of the run reaches, unlike the global one
    loaders = {
        "train": DataLoader(pictures, batch_size=8, shuffle=True, generator=own),
        "valid": DataLoader(pictures, batch_size=8, shuffle=True),
    }
    seen: list[torch.Tensor] = []

    class Watching(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            seen.append(inputs)
            return inputs

    context = Context(settings(tmp_path, analyze__split=split, analyze__share=0.5))
    metric = tasks.Metric("batches", True, lambda pairs: float(len(list(pairs))))
    context.task = dataclasses.replace(
        tasks.load(str(TASK)), data=loaders.__getitem__, metric=metric
    )
    judge = stages.judge_of(context, share_of(context.task, split, 0.5))
    assert judge(Watching(1, 1)) == 4
    first, seen = torch.cat(seen), []
    torch.rand(3)
    judge(Watching(1, 1))
    assert torch.equal(torch.cat(seen), first)


def test_fingerprints_follow_the_data() -> None:
    first, same, other = (tasks.load(str(TASK), seed=seed) for seed in (0, 0, 1))
    for split in ("train", "valid"):
        assert data_digest(first, split) == data_digest(same, split)
        assert data_digest(first, split) != data_digest(other, split)


def test_what_was_measured_with_other_settings_is_not_passed_over_in_silence(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    pipeline.analyze(settings(tmp_path))
    found = pipeline.suggest(settings(tmp_path, analyze__ratios=(0.25,)))
    assert found.source.startswith("estimated")
    assert "what was measured is not used: the settings.ratios" in said.text


def test_of_several_budgets_all_are_kept_to_in_every_suggestion(tmp_path: Path) -> None:
    rows = pipeline.suggest(settings(tmp_path, budget__params=0.6)).rows
    assert len(rows) > 3
    assert all(row.left["params"] <= 0.6 for row in rows)
    assert all(row.left["macs"] <= row.budget["macs"] for row in rows)
    assert [row.budget["macs"] for row in rows if row.asked] == [0.5]


def test_a_run_keeps_multiples(tmp_path: Path) -> None:
    config = settings(tmp_path, prune__multiple_of=4)
    assert all(not kept % 4 for row in pipeline.suggest(config).rows for _, _, kept in row.groups)
    record = pipeline.run(config).record
    kept = [group.kept for found in record.rounds for group in found.attempts[-1].groups]
    assert min(kept) < 12
    assert not any(count % 4 for count in kept)
    with pytest.raises(BudgetError, match="lower `multiple_of`"):
        pipeline.run(settings(tmp_path / "coarse", prune__multiple_of=4, budget__macs=0.05))


def test_a_run_takes_the_best_of_several_plans(tmp_path: Path) -> None:
    config = settings(tmp_path, prune__rounds=1, prune__candidates=5)
    [found] = pipeline.run(config).record.rounds
    best, first = map(
        float,
        re.match(  # type: ignore[union-attr]
            r"best of [2-5] plans: divergence (\S+) against (\S+) of the first",
            found.attempts[0].found,
        ).groups(),
    )
    assert best <= first
    assert found.attempts[0].found in (tmp_path / "report.html").read_text()
    alone = pipeline.run(settings(tmp_path, prune__rounds=1)).record.rounds[0].attempts[0]
    assert not alone.found, "other settings, another plan"


def test_plans_are_compared_where_they_can_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the 5 `candidates` are each judged after their repair"):
        settings(tmp_path, prune__candidates=5, prune__repair=False)
    with pytest.raises(ConfigError, match=r"^in the options: `prune\.candidates` are tried"):
        settings(tmp_path, prune__candidates=5, budget__latency=0.5)


def test_a_run_says_what_it_could_not_keep(tmp_path: Path) -> None:
    config = settings(tmp_path, budget__macs=0.2, prune__max_ratio=0.3)
    for _ in range(2):  # the second time nothing is pruned anew
        notes = pipeline.run(config).record.notes
        assert any("the budget cannot be kept within max_ratio: " in note for note in notes)


def test_data_no_seed_decides_have_no_fingerprint() -> None:
    task = tasks.load(str(TASK))
    generator = torch.Generator()
    generator.seed()

    def data(split: tasks.Split) -> list[Any]:
        return [(torch.rand(2, generator=generator), torch.zeros(2))]

    assert data_digest(dataclasses.replace(task, data=data), "valid") == "not reproducible"


class Heads(nn.Module):
    """Attention of four heads, of any size, and a classifier."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.q, self.k, self.v = (nn.Linear(6, 4 * size) for _ in range(3))
        self.out = nn.Linear(4 * size, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length = x.shape[:2]
        q, k, v = (
            part(x).view(n, length, -1, self.size).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        scores = (q @ k.transpose(-2, -1)).softmax(-1)
        return self.head(self.out((scores @ v).transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("size", [2, 8])
def test_a_layer_down_to_its_last_head_is_pruned_further(size: int) -> None:
    """What was a unit, the head, is none any more: its positions are, under the same name."""
    net, x, name = Heads(size).eval(), torch.randn(2, 5, 6), "q"
    whole = prunella.couple(prunella.trace(net, x))
    assert whole[name].channels == 4
    scores = prunella.score(net, whole)
    last = prunella.transform(net, prunella.allocate(whole, scores, {name: 0.75}), x)
    groups = prunella.couple(prunella.trace(last, x))
    assert groups[name].channels == size
    losses = {group.name: (0.0,) if group.name == name else (1.0,) for group in whole}
    curves = {n: tuple(1.0 - loss for loss in found) for n, found in losses.items()}
    sizes = {group.name: group.channels for group in whole}
    measured = prunella.Sensitivity("accuracy", True, 1.0, (0.75,), curves, sizes)
    notes: list[str] = []
    config = load(None, {"prune.max_ratio": 0.5})
    context: Any = SimpleNamespace(config=config, groups=whole, note=notes.append)
    damage, most = planning.damage_of(context, measured, groups), planning.most(context, groups)
    assert damage(name, size) == 0
    assert damage(name, 1) > 0, "the heads were found to be free, not what is in the last one"
    assert most[name] == 0.5
    assert "no such channels as those of" in notes[0]
    assert name in notes[0]
    others = [group.name for group in groups if group.name in sizes and group.name != name]
    assert all(damage(other, sizes[other]) == 0 for other in others)


def test_no_group_is_emptied_while_another_can_give() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 1))
    groups = prunella.couple(prunella.trace(net, torch.randn(1, 3, 4, 4)))
    scores = prunella.score(net, groups)
    curves = {"0": (1.0, 1.0), "2": (1.0, 0.2)}  # "0" looks free, "2" is not
    flat = prunella.Sensitivity("accuracy", True, 1.0, (0.5, 0.9), curves, {"0": 16, "2": 16})
    budget = prunella.Budget(macs=0.5)
    assert len(prunella.allocate(groups, scores, budget, flat.damage).channels["0"]) < 8
    config = load(None, {"prune.max_ratio": 0.5})
    context: Any = SimpleNamespace(config=config, groups=groups, note=print)
    damage, most = planning.damage_of(context, flat, groups), planning.most(context, groups)
    held = prunella.allocate(groups, scores, budget, damage, max_ratio=most)
    assert len(held.channels["0"]) >= 8


@pytest.mark.parametrize("verb", ["run", "transform"])
@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("float('nan')", "of the dense model, metric `accuracy` of task `tiny` is nan on split"),
        ("[][1]", "of the dense model, judging the model on split `test` failed: IndexError"),
    ],
)
def test_a_metric_that_fails_on_test_loses_nothing_else(
    tmp_path: Path, verb: str, broken: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / "odd.py"
    odd.write_text(
        TASK.read_text().replace(
            "        metric=accuracy(),",
            "        metric=Metric('accuracy', True, lambda pairs: judged(list(pairs))),",
        )
        + "\n\nfrom prunella.tasks import Metric\nTEST = Pictures('test', 0, 0).labels\n"
        "def judged(pairs):\n"
        "    if torch.equal(torch.cat([batch[1] for _, batch in pairs]), TEST):\n"
        f"        return {broken}\n"
        "    return accuracy().compute(pairs)\n"
    )
    config = settings(tmp_path / "run", task__spec=str(odd), prune__rounds=1)
    if verb == "transform":
        pipeline.prune(config)
        pipeline.finetune(config)
    with pytest.raises(TaskError, match=rf"{why}.*Untested, the final model is in `.*/final`"):
        getattr(pipeline, verb)(config)
    page = tmp_path / "run/report.html"
    assert page.exists() == (verb == "run")
    text = pipeline.report(config).read_text()
    assert "budget met" in text
    assert f"The test split gave no number: {why[:20]}" in text
    assert prunella.load(tmp_path / "run/final", Context(config).dense)


def test_an_example_that_is_shorter_than_a_batch_is_not_exported(tmp_path: Path) -> None:
    context = Context(settings(tmp_path))
    context.task = dataclasses.replace(context.task, inputs=lambda batch: (batch[0], batch[1]))
    with pytest.raises(
        ConfigError, match=r"makes 2 arguments of a batch, and its `example_inputs` are 1; .*Write"
    ):
        exporting._data(context, "valid", 2)
