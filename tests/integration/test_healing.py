"""Finetuning between rounds: the optimizer's state, features, and outputs that teach nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch

from prunella import pipeline
from prunella.config import load
from prunella.finetuning.moments import read_moments
from prunella.pipeline import healing
from prunella.pipeline.context import Context

TASK = Path(__file__).parents[1] / "tiny_task.py"
BASE = {
    "task.spec": str(TASK),
    "budget.macs": 0.5,
    "prune.rounds": 2,
    "prune.repair": False,
    "analyze.ratios": (0.5,),
    "finetune.epochs": 2,
    "finetune.trials": 2,
    "finetune.carry_state": True,
    "finetune.feature_distill": 0.5,
    "run.latency_seconds": 0.05,
    "run.device": "cpu",
}


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


@pytest.mark.parametrize(
    ("text", "why"),
    [(ONE_NUMBER, "are no logits of several classes"), (SEVERAL_NUMBERS, "set `finetune.distill`")],
)
def test_outputs_that_are_no_classes_teach_nothing_unless_asked(
    tmp_path: Path, text: str, why: str
) -> None:
    regression = tmp_path / "regression.py"
    head = "import dataclasses\n\n_stated = task\n\n\ndef task() -> Task:\n"
    regression.write_text(f'{TASK.read_text()}\n\n{head}    """Tell numbers."""\n{text}')
    values = {**BASE, "task.spec": str(regression), "run.folder": str(tmp_path / "run")}
    context = Context(load(None, values))
    assert healing.space_of(context, 1).recipe.distill == 0
    assert any("learns from the labels alone: " in n and why in n for n in context.notes)
    asked = Context(load(None, {**values, "finetune.distill": 0.3}))
    assert healing.space_of(asked, 1).recipe.distill == 0.3
    assert asked.notes == []
    usual = Context(load(None, {**values, "task.spec": str(TASK)}))
    assert healing.space_of(usual, 1).recipe.distill > 0
    assert torch.is_grad_enabled()
