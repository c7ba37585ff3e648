"""Finetuning between rounds: the optimizer's state, features, and outputs that teach nothing."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prunella import pipeline, tasks
from prunella.config import load
from prunella.finetuning.moments import read_moments
from prunella.model.carrying import plan_of
from prunella.pipeline import healing
from prunella.pipeline.context import Context
from prunella.report.wording import NONE, headline_rows
from tests.quick_runs import QUICK, TASK

BASE = {
    **QUICK,
    "prune.rounds": 2,
    "prune.repair": False,
    "finetune.epochs": 2,
    "finetune.trials": 2,
    "finetune.carry_state": True,
    "finetune.feature_distill": 0.5,
}


def changed_task(folder: Path, text: str) -> Path:
    """Write a task file of the tiny task with another end."""
    path = folder / "changed.py"
    head = "import dataclasses\n\n_stated = task\n\n\ndef task() -> Task:\n"
    path.write_text(f'{TASK.read_text()}\n\n{head}    """Tell."""\n{text}')
    return path


def run(folder: Path, **more: Any) -> pipeline.Result:
    return pipeline.run(load(None, {**BASE, **more, "run.folder": str(folder)}))


def test_the_state_is_cut_and_carried_and_a_killed_run_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    search = healing.search

    def spy(model: Any, *args: Any, **kwargs: Any) -> Any:
        given.append((model, kwargs["moments"]))
        return search(model, *args, **kwargs)

    monkeypatch.setattr(healing, "search", spy)
    run(tmp_path / "whole")
    assert [moments is None for _, moments in given] == [True, False]
    model, moments = given[1]
    for name, parameter in model.named_parameters():
        assert moments[name]["momentum_buffer"].shape == parameter.shape
        assert moments[name]["momentum_buffer"].any()

    def killed(*args: Any, **kwargs: Any) -> Any:
        done = spy(*args, **kwargs)
        if kwargs["moments"] is not None:
            raise KeyboardInterrupt  # after the second round's trainings, before its record
        return done

    monkeypatch.setattr(healing, "search", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed")
    monkeypatch.setattr(healing, "search", search)
    run(tmp_path / "killed")
    for name in (
        "final/model.safetensors",
        "final/plan.json",
        "rounds/02/1/optimizer/moments.safetensors",
    ):
        one, other = ((tmp_path / folder / name).read_bytes() for folder in ("whole", "killed"))
        assert one == other, name


def test_masked_training_leaves_the_state_of_the_pruned_model(tmp_path: Path) -> None:
    run(tmp_path, **{"finetune.masked": True, "finetune.epochs": 1, "finetune.trials": 1})
    context = Context(load(None, {**BASE, "run.folder": str(tmp_path)}))
    for attempt in ("rounds/01/1", "rounds/02/1"):
        moments = read_moments(tmp_path / attempt / "optimizer/moments.safetensors")
        for name, parameter in context.load(f"{attempt}/finetuned").named_parameters():
            assert moments[name]["momentum_buffer"].shape == parameter.shape


def test_the_state_of_another_optimizer_is_left_behind(tmp_path: Path) -> None:
    values = {**BASE, "run.folder": str(tmp_path), "finetune.trials": 1, "finetune.epochs": 1}
    run(tmp_path, **{"finetune.trials": 1, "finetune.epochs": 1})
    again = load(None, {**values, "finetune.optimizer": "adamw"})
    record = pipeline.finetune(again).record  # of the last round; the first was made with sgd
    assert any("begins anew" in note and "`momentum_buffer`" in note for note in record.notes)
    kept = read_moments(tmp_path / "rounds/02/1/optimizer/moments.safetensors")
    assert all("exp_avg" in values for values in kept.values())


ONE_NUMBER = """
    def model():
        made = _stated().model()
        made.head = nn.Linear(12, 1)
        return made

    return dataclasses.replace(_stated(), model=model)
"""

SEVERAL_NUMBERS = """
    def loss(outputs, batch):
        return (outputs - batch[1][:, None]).square().mean()

    return dataclasses.replace(_stated(), loss=loss)
"""


AUXILIARY_HEAD = """
    class Two(Tiny):
        def forward(self, images):
            logits = super().forward(images)
            return (logits, logits.roll(1)) if self.training else logits

    def loss(outputs, batch):
        assert isinstance(outputs, tuple), "called with what training gives"
        return sum(F.cross_entropy(each, batch[1]) for each in outputs)

    return dataclasses.replace(_stated(), model=Two, loss=loss)
"""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (ONE_NUMBER, "are no logits of several classes"),
        (SEVERAL_NUMBERS, "set `finetune.distill`"),
        (AUXILIARY_HEAD, "while training the model returns other outputs (tuple)"),
    ],
)
def test_outputs_that_are_no_classes_teach_nothing_unless_asked(
    tmp_path: Path, text: str, why: str
) -> None:
    regression = changed_task(tmp_path, text)
    values = {**BASE, "task.spec": str(regression), "run.folder": str(tmp_path / "run")}
    context = Context(load(None, values))
    assert healing.space_of(context, last=True).recipe.distill == 0
    assert any("learns from the labels alone: " in n and why in n for n in context.notes)
    asked = Context(load(None, {**values, "finetune.distill": 0.3}))
    assert healing.space_of(asked, last=True).recipe.distill == 0.3
    assert asked.notes == []
    usual = Context(load(None, {**values, "task.spec": str(TASK)}))
    assert healing.space_of(usual, last=True).recipe.distill > 0
    assert torch.is_grad_enabled()


NAMED = """
    from collections import namedtuple

    Both = namedtuple("Both", "logits auxiliary")
""" + AUXILIARY_HEAD.replace("(logits, logits.roll(1))", "Both(logits, logits.roll(1))")


@pytest.mark.parametrize(("text", "taught"), [(AUXILIARY_HEAD, False), (NAMED, True)])
def test_a_model_with_an_auxiliary_head_is_finetuned(
    tmp_path: Path, text: str, taught: bool
) -> None:
    more = {"finetune.feature_distill": 0.0, "finetune.epochs": 1, "finetune.trials": 1}
    spec = str(changed_task(tmp_path, text))
    done = run(tmp_path / "run", **{**more, "task.spec": spec, "prune.rounds": 1}).record
    assert done.outcome == "done"
    assert any("learns from the labels alone" in note for note in done.notes) is not taught


def test_a_metric_not_finite_before_finetuning_is_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Context.evaluate

    def damaged(self: Context, model: nn.Module, split: tasks.Split) -> float:
        if split == "test" or plan_of(model) is None:
            return judge(self, model, split)
        metric = dataclasses.replace(self.task.metric, compute=lambda pairs: math.nan)
        nowhere = dataclasses.replace(self.task, metric=metric)
        return tasks.evaluate(model, nowhere, split, device=self.device)

    monkeypatch.setattr(Context, "evaluate", damaged)
    more = {"finetune.feature_distill": 0.0, "finetune.epochs": 1, "finetune.trials": 1}
    record = run(tmp_path, **more, **{"prune.rounds": 1}).record
    assert record.outcome == "done"
    attempt = record.rounds[0].attempts[0]
    assert attempt.pruned_metric is None
    assert attempt.metric is not None
    assert any("before finetuning, metric `accuracy`" in note for note in record.notes)
    for text in [path.read_text() for path in tmp_path.rglob("*.json")]:
        json.loads(text, parse_constant=pytest.fail)  # NaN and Infinity are no JSON
    assert (tmp_path / "report.html").exists()
    shown = pipeline.prune(load(None, {**BASE, "run.folder": str(tmp_path / "by hand")})).record
    assert shown.compressed is not None
    assert shown.compressed.valid is None
    assert shown.baseline.valid is not None
    assert headline_rows(shown)[0].compressed == NONE
