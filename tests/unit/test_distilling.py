"""Distillation against the definition, and outputs it cannot use."""

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prunella.distilling import (
    distillation,
    feature_distance,
    logits_of,
    reads_classes,
    teaches,
)
from prunella.errors import TaskError


def by_definition(model: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    def softmax(rows: np.ndarray) -> np.ndarray:
        powers = np.exp(rows / temperature)
        return powers / powers.sum(1, keepdims=True)

    first, second = softmax(model), softmax(teacher)
    return temperature**2 * float((second * np.log(second / first)).sum(1).mean())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_definition(temperature: float) -> None:
    model, teacher = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    found = distillation(model, teacher, temperature).item()
    assert found == pytest.approx(by_definition(model.numpy(), teacher.numpy(), temperature), 1e-5)


def test_zero_for_equal_outputs() -> None:
    logits = torch.randn(5, 3)
    assert distillation(logits, logits + 7, 2.0).item() == pytest.approx(0.0, abs=1e-6)


def test_classes_of_images_and_of_tokens() -> None:
    model, teacher = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    flat = [value.permute(0, 2, 3, 1).reshape(-1, 3) for value in (model, teacher)]
    assert torch.allclose(distillation(model, teacher, 2.0), distillation(*flat, 2.0))
    tokens = [value.reshape(2, 20, 3) for value in flat]
    assert torch.allclose(distillation(*tokens, 2.0), distillation(*flat, 2.0))


@dataclass
class Outputs:
    logits: Any
    hidden: Tensor | None = None


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"logits": x}, Outputs])
def test_logits_are_found(wrap: Any) -> None:
    logits = torch.randn(2, 3)
    assert logits_of(wrap(logits)) is logits


@pytest.mark.parametrize(
    "outputs", [(torch.zeros(2, 3), 1), {"out": torch.zeros(2, 3)}, Outputs(None), None]
)
def test_no_logits(outputs: Any) -> None:
    with pytest.raises(TaskError, match=r"distillation needs logits.*Set `distill = 0`"):
        logits_of(outputs)


def test_other_classes() -> None:
    with pytest.raises(TaskError, match=r"shape \(2, 3\), the teacher's \(2, 4\)"):
        distillation(torch.zeros(2, 3), torch.zeros(2, 4), 1.0)


@pytest.mark.parametrize("shape", [(4, 1), ()])
def test_no_classes(shape: tuple[int, ...]) -> None:
    with pytest.raises(TaskError, match="have no classes to compare"):
        distillation(torch.zeros(shape), torch.zeros(shape), 1.0)


def test_feature_distance_by_hand() -> None:
    wanted = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    moved = wanted + torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    # squares: 1 + 4 away, of 9 + 16
    assert feature_distance([(moved, wanted)]).item() == pytest.approx(5 / 25)
    assert feature_distance([(moved, wanted), (wanted, wanted)]).item() == pytest.approx(2.5 / 25)
    assert feature_distance([(torch.zeros(2, 2), wanted)]).item() == pytest.approx(1.0)
    # The size of a network's numbers makes no difference, and neither does an empty feature.
    assert feature_distance([(100 * moved, 100 * wanted)]).item() == pytest.approx(5 / 25)
    assert feature_distance([(torch.zeros(2, 2), torch.zeros(2, 2))]).item() == 0


@pytest.mark.parametrize(
    ("outputs", "wanted"),
    [
        (torch.zeros(2, 3), True),
        ({"logits": torch.zeros(2, 5, 7)}, True),
        (torch.zeros(2, 1), False),
        (torch.zeros(()), False),
        ([{"boxes": torch.zeros(2, 4)}], False),
    ],
)
def test_what_can_teach(outputs: Any, wanted: bool) -> None:
    assert teaches(outputs) is wanted


@dataclass(frozen=True)
class Frozen:
    logits: Any


WRAPPERS = [
    lambda x: x,
    lambda x: {"logits": x},
    Outputs,
    Frozen,
    namedtuple("Named", "logits"),
]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_losses_that_go_through_a_softmax_read_classes(wrap: Any) -> None:
    pixels, labels = torch.randn(4, 5, 2, 2), torch.randint(5, (4, 2, 2))
    mixed = torch.rand(4, 5).softmax(1)
    for logits, loss in (
        (pixels, lambda out: F.cross_entropy(logits_of(out), labels)),
        (torch.randn(4, 5), lambda out: F.cross_entropy(logits_of(out), mixed)),
        (torch.randn(4, 5).half(), lambda out: -logits_of(out).log_softmax(1)[:, 0].mean()),
    ):
        outputs = wrap(logits.clone())
        assert reads_classes(loss, outputs)
        assert torch.equal(logits_of(outputs), logits), "they are left as they are"


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_squared_errors_and_sigmoids_do_not(wrap: Any) -> None:
    logits, wanted = torch.randn(4, 5), torch.rand(4, 5)
    for loss in (F.mse_loss, F.l1_loss, F.binary_cross_entropy_with_logits):
        assert not reads_classes(lambda out, loss=loss: loss(logits_of(out), wanted), wrap(logits))
    # an error of half the step on average looks the same after it, but not after the other
    assert not reads_classes(lambda out: ((out - logits - 0.5) ** 2).mean(), logits)


def test_what_cannot_be_found_out_counts_as_classes() -> None:
    def fails(outputs: Any) -> Tensor:
        raise RuntimeError("needs outputs of training mode")

    assert reads_classes(fails, torch.randn(2, 3))
    assert reads_classes(lambda out: out.mean() * float("nan"), torch.randn(2, 3))
