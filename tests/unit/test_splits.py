"""A split that is not there is found before the long work, not after it."""

from pathlib import Path

import pytest

from prunella import pipeline
from prunella.config import Config
from prunella.errors import TaskError
from prunella.model.structure import weights_digest
from prunella.pipeline.context import Context
from prunella.pipeline.splits import look_at_training
from tests.quick_runs import quick

MINE = """
import dataclasses

from tests.tiny_task import task as tiny

whole = tiny()
task = dataclasses.replace(whole, data={data}, {more})
"""


def settings(folder: Path, data: str, more: str = "") -> Config:
    file = folder / "mine.py"
    file.write_text(MINE.format(data=data, more=more))
    return quick(folder / "run", task__spec=str(file), prune__rounds=1)


EMPTY = "lambda split: [] if split == '{split}' else whole.data(split)"
NONE = "lambda split: {'train': whole.data('train'), 'valid': whole.data('valid')}[split]"


FRESH = "lambda split: iter(list(whole.data(split)))"
SHARED = "lambda split, batches=(batch for batch in whole.data('train')): batches"


NO_TEST = (
    r"cannot open split `test`: KeyError: 'test' at .*mine\.py:\d+ .*\. Repair .* The split `test` "
    "judges the final"
)
EMPTY_TEST = r"loader of split `test` gave no batch.*hold some data out"
MISSING = [
    (EMPTY.format(split="train"), "loader of split `train` in epoch 1 gave no batch"),
    (EMPTY.format(split="valid"), "loader of split `valid` gave no batch"),
    (FRESH, "split `train` as a list_iterator, which is through after one epoch"),
    (SHARED, "split `train` as a generator, which is through after one epoch"),
]


@pytest.mark.parametrize(
    ("verb", "data", "message"),
    [
        ("run", NONE, NO_TEST),
        ("run", EMPTY.format(split="test"), EMPTY_TEST),
        *((verb, *case) for verb in ("analyze", "prune", "run") for case in MISSING),
    ],
)
def test_a_missing_split_is_found_before_the_model_is_made(
    tmp_path: Path, verb: str, data: str, message: str
) -> None:
    config = settings(tmp_path, data=data, more="model=lambda: 1 / 0")  # it is not made yet
    with pytest.raises(TaskError, match=message):
        getattr(pipeline, verb)(config)
    assert not (tmp_path / "run/baseline.json").exists()


def test_what_tests_nothing_needs_no_test_split(tmp_path: Path) -> None:
    config = settings(tmp_path, NONE)
    pipeline.analyze(config)
    pipeline.prune(config)
    pipeline.finetune(config)
    with pytest.raises(TaskError, match=r"open split `test`.*Untested, the final model is in `"):
        pipeline.transform(config)
    assert (tmp_path / "run/final/plan.json").exists()


def test_batches_that_the_task_cannot_read_are_found_as_well(tmp_path: Path) -> None:
    data = "lambda split: [{'images': 0}] if split == 'test' else whole.data(split)"
    with pytest.raises(TaskError, match=r"`inputs` of task `tiny` raised KeyError: 0.*`test`"):
        pipeline.run(settings(tmp_path, data, more="model=lambda: 1 / 0"))


def test_what_fails_only_when_tested_leaves_the_final_model(tmp_path: Path) -> None:
    data = (
        "lambda split: (b if i < 2 else 1 / 0 for i, b in enumerate(whole.data('test')))"
        " if split == 'test' else whole.data(split)"
    )
    error = "split `test` raised at batch 2: ZeroDivisionError.* Untested, the final model is in"
    with pytest.raises(TaskError, match=error):
        pipeline.run(settings(tmp_path, data))
    assert (tmp_path / "run/final/plan.json").exists()
    assert (tmp_path / "run/final.json").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            "loss=lambda o, b: o",
            r"loss of task `tiny` must be a tensor of one number, got \(32, 4",
        ),
        ("loss=lambda o: 1", "the loss of task `tiny` raised TypeError"),
        (
            "inputs=lambda batch: (batch[0].repeat(1, 1 + (len(batch[1]) == 31), 1, 1),)",
            r"dense model raised RuntimeError.* in training mode, on the first batch of split",
        ),
    ],
)
def test_a_loss_that_fails_is_found_before_the_analysis(
    tmp_path: Path, more: str, message: str
) -> None:
    data = (
        "lambda split: [tuple(p[:31] for p in b) for b in whole.data(split)] if split == 'train' "
        "else whole.data(split)"
        if "31" in more
        else "whole.data"
    )
    config = settings(tmp_path, data, f"settings={{'distill': 0.0}}, {more}")
    with pytest.raises(TaskError, match=message):
        pipeline.run(config)
    assert not (tmp_path / "run/sensitivity.json").exists()


def test_batches_without_a_length_are_counted_before_the_analysis(tmp_path: Path) -> None:
    data = (
        "lambda split: type('Stream', (), {'__iter__': lambda self: (b or 1 / 0 "
        "for b in [*whole.data(split), 0])})() if split == 'train' else whole.data(split)"
    )
    with pytest.raises(TaskError, match="counting split `train` raised at batch 8"):
        pipeline.run(settings(tmp_path, data, "settings={'distill': 1.0}"))
    assert not (tmp_path / "run/sensitivity.json").exists()


def test_a_loss_that_is_never_asked_for_is_not_looked_at(tmp_path: Path) -> None:
    pipeline.run(settings(tmp_path, "whole.data", "settings={'distill': 1.0}, loss=lambda: 1"))
    assert (tmp_path / "run/final/plan.json").exists()


LEARNING = """

import torch
import torch.nn.functional as F
from torch import nn


class Learning(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = tiny().model()
        self.mean = nn.Parameter(torch.zeros(4), requires_grad=False)

    def forward(self, images):
        logits = self.body(images)
        if self.training:
            self.mean = nn.Parameter(logits.detach().mean(0), requires_grad=False)
        return logits - self.mean


def penalty(outputs, batch):
    (slope,) = torch.autograd.grad(outputs.square().sum(), outputs, create_graph=True)
    return F.cross_entropy(outputs, batch[1]) + 1e-6 * slope.square().mean()


task = dataclasses.replace(task, model=Learning)
"""


def looked_at(folder: Path, more: str) -> Context:
    config = settings(folder, "whole.data", more)
    with (folder / "mine.py").open("a") as file:
        file.write(LEARNING)
    return Context(config)


def test_a_first_loss_leaves_the_dense_model_as_it_is(tmp_path: Path) -> None:
    context = looked_at(tmp_path, "settings={'distill': 0.0}")
    before = weights_digest(context.dense)
    look_at_training(context)
    assert weights_digest(context.dense) == before
    assert not any(module.training for module in context.dense.modules())


def test_a_first_loss_has_the_gradients_that_it_asks_for(tmp_path: Path) -> None:
    look_at_training(looked_at(tmp_path, "loss=lambda o, b: penalty(o, b)"))
