"""What a task suggests for finetuning: under what the user sets, over the defaults, and checked."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from prunella import tasks
from prunella.config import Config, load
from prunella.errors import ConfigError
from prunella.experiments import Space
from prunella.finetuning import Recipe
from prunella.pipeline.context import Context
from prunella.pipeline.healing import space_of
from prunella.tasks import cifar10, digits

TASK = Path(__file__).parents[1] / "tiny_task.py"
BASE: dict[str, Any] = {"task.spec": str(TASK), "run.device": "cpu", "finetune.distill": 0.5}


def space(suggests: Any, last: bool = False, **more: Any) -> Space:
    settings = {**BASE, **{key.replace("__", "."): value for key, value in more.items()}}
    context = Context(load(None, settings))
    context.task = dataclasses.replace(tasks.load(str(TASK)), settings=suggests)
    return space_of(context, last=last)


def test_without_suggestions_it_is_as_it_always_was() -> None:
    found = space({})
    assert found.recipe == Recipe(distill=0.5)
    assert found.lrs == (0.01, 0.003, 0.03)
    assert found.decays == ("cosine", "linear")


def test_every_suggestion_is_taken() -> None:
    suggests = {
        "epochs": 9,
        "lr": 0.1,
        "decay": "step",
        "warmup": 0.2,
        "optimizer": "adamw",
        "momentum": 0.5,
        "weight_decay": 0.3,
        "distill": 0.4,
        "temperature": 2.0,
        "feature_distill": 0.7,
        "carry_state": True,
        "ema": 0.9,
        "precision": "bf16",
        "channels_last": True,
    }
    assert suggests.keys() == {field.name for field in dataclasses.fields(Recipe)} - {"seed"}
    context = Context(load(None, {"task.spec": str(TASK), "run.seed": 3}))
    context.task = dataclasses.replace(tasks.load(str(TASK)), settings=suggests)
    found = space_of(context, last=False)
    assert dataclasses.asdict(found.recipe) == {**suggests, "seed": 3}
    assert found.decays == ("step",)
    assert found.lrs == (0.1, 0.03, 0.3)
    assert {point["decay"] for point in found.points} == {"step"}


@pytest.mark.parametrize("epochs", [2, 12])  # 12 is what it is by default, too
def test_the_user_is_stronger(epochs: int) -> None:
    suggests = {"epochs": 9, "decay": "step", "ema": 0.9, "precision": "bf16", "lr": 0.1}
    found = space(
        suggests,
        finetune__epochs=epochs,
        finetune__decays=("linear", "cosine"),
        finetune__ema=0.5,
        finetune__lr=(0.2,),
        run__precision="no",
    )
    assert (found.recipe.epochs, found.recipe.ema) == (epochs, 0.5)
    assert found.recipe.precision == "no"
    assert found.decays == ("linear", "cosine")
    assert found.lrs == (0.2,)


def test_the_last_round_may_have_epochs_of_its_own() -> None:
    assert space({"epochs": 9}, last=True, finetune__last_epochs=20).recipe.epochs == 20
    assert space({"epochs": 9}, last=False, finetune__last_epochs=20).recipe.epochs == 9
    assert space({"epochs": 9}, last=True).recipe.epochs == 9


@pytest.mark.parametrize(
    ("suggests", "message"),
    [
        (
            {"weigth_decay": 0.1},
            "cannot suggest `weigth_decay` in its `settings`. Did you mean `wei",
        ),
        ({"batch": 4}, "`batch` in its `settings`. It may suggest epochs, lr, decay,"),
        ({3: 4}, "task `tiny` cannot suggest `3`"),
        (
            {"trials": 4},
            "cannot suggest `trials` in its `settings`: it is the user's, `finetune.tr",
        ),
        ({"decays": ("step",)}, "it is the user's, `finetune.decays`"),
        ({"seed": 4}, "cannot suggest `seed`: it is the run's, `run.seed`"),
        ({"lr": "fast"}, "`settings` of task `tiny`, `lr`: input should be a valid number"),
        ({"lr": [0.1, 0.2]}, "got [0.1, 0.2]"),
        ({"epochs": 2.5}, "`epochs`: input should be a valid integer"),
        ({"decay": "cos"}, "`decay`: input should be 'cosine', 'linear', 'step' or 'constant'"),
        ({"lr": -1.0}, "`settings` of task `tiny`, lr is greater than 0 and finite, got -1.0"),
        (["lr"], "`settings` of task `tiny` is a mapping such as {'lr': 0.01}, got list"),
    ],
)
def test_what_cannot_be_suggested(suggests: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        space(suggests)


def test_it_is_told_when_the_task_is_loaded(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    text = TASK.read_text()
    assert text.count('{"lr": 0.02}') == 1
    wrong.write_text(text.replace('{"lr": 0.02}', '{"learning_rate": 0.02}'))
    with pytest.raises(ConfigError, match="cannot suggest `learning_rate`"):
        Context(load(None, {**BASE, "task.spec": str(wrong)})).task.model()


def test_settings_that_are_unset_come_back_unset() -> None:
    again = Config.model_validate(load(None, BASE).model_dump(mode="json"))
    assert (again.finetune.epochs, again.finetune.decays, again.run.precision) == (None,) * 3


def test_the_built_in_tasks_suggest_what_they_did() -> None:
    assert dict(digits.task().settings) == {"lr": 0.05, "weight_decay": 5e-4}
    wanted = {"lr": 0.02, "weight_decay": 1e-4, "channels_last": True}
    assert dict(cifar10.task().settings) == wanted
    context = Context(load(None, {"task.spec": "digits", "finetune.distill": 0.9}))
    found = space_of(context, last=True)
    assert found.recipe == Recipe(lr=0.05, weight_decay=5e-4)
    assert [tuple(point.values()) for point in found.points] == [
        (0.05, "cosine"),
        (0.015, "cosine"),
        (0.05, "linear"),
    ]
