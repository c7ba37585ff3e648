"""A training or a pruned model that has run out of bounds, and code of users that raises on it."""

import math
from collections import namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunella import tasks
from prunella.errors import TaskError
from prunella.experiments import Space, search
from prunella.finetuning import DivergedError, Recipe, finetune
from prunella.model.outputs import finite, in_float32
from prunella.tasks import Metric, NotFiniteError, Task, cross_entropy
from tests.unit.small_task import small_model, small_task

RECIPE = Recipe(epochs=2, lr=0.05, distill=0.0)
SPACE = Space(RECIPE, (1e30, 0.05), trials=2)
Pair = namedtuple("Pair", "first second")


def careful(outputs: Tensor, batch: Any) -> Tensor:
    assert outputs.isfinite().all(), "logits are numbers"
    return cross_entropy(outputs, batch)


class Validating(nn.Module):
    """A model that raises by itself on what is not finite, as torch.distributions do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small_model()

    def forward(self, points: Tensor) -> Tensor:
        scores = self.body(points)
        # Said in words, since torch's compiler turns it off for the whole process.
        logits: Tensor = torch.distributions.Categorical(logits=scores, validate_args=True).logits
        return logits


def strict_accuracy(pairs: Any) -> float:
    scores = [(outputs, batch[1]) for outputs, batch in pairs]
    if any(not outputs.isfinite().all() for outputs, _ in scores):
        raise ValueError("Input contains NaN.")
    return sum(float((o.argmax(1) == t).float().mean()) for o, t in scores) / len(scores)


@pytest.mark.parametrize(
    ("model", "loss", "what"),
    [
        (small_model(), careful, "the loss is nan"),
        (Validating(), cross_entropy, "what `body"),
    ],
)
def test_an_experiment_fails_alone_where_code_raises_on_what_is_not_finite(
    tmp_path: Path, model: nn.Module, loss: Any, what: str
) -> None:
    found = search(model, replace(small_task(), loss=loss), SPACE, folder=tmp_path)
    failed, complete = found.experiments
    assert (failed.state, complete.state) == ("failed", "complete")
    assert failed.reason.startswith(what)
    assert "the training has diverged" in failed.reason


def test_a_loss_that_raises_on_numbers_is_the_task_s_fault() -> None:
    def loss(outputs: Tensor, batch: Any) -> Tensor:
        raise ValueError("no such class")

    task = replace(small_task(), loss=loss)
    with pytest.raises(TaskError, match="raised ValueError: no such class") as caught:
        finetune(small_model(), task, RECIPE)
    assert not isinstance(caught.value, DivergedError)


def test_the_step_of_outputs_that_are_not_finite_is_named() -> None:
    seen = []

    def loss(outputs: Tensor, batch: Any) -> Tensor:
        seen.append(1)
        return careful(outputs * (math.inf if len(seen) == 9 else 1.0), batch)

    def broken(outputs: Tensor, batch: Any) -> Tensor:
        return careful(outputs, batch)

    class Bursting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.calls = small_model(), 0

        def forward(self, points: Tensor) -> Tensor:
            self.calls += self.training
            outputs: Tensor = self.body(points)
            return outputs / 0 if self.calls == 9 else outputs

    with pytest.raises(TaskError) as caught:  # the outputs themselves were finite
        finetune(small_model(), replace(small_task(), loss=loss), RECIPE)
    assert not isinstance(caught.value, DivergedError)
    with pytest.raises(DivergedError, match="the loss is nan, in epoch 2, step 3"):
        finetune(Bursting(), replace(small_task(), loss=broken), RECIPE)


class Overflowing(nn.Module):
    """Gives finite numbers while training, and later none."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.body, self.left = small_model(), calls

    def forward(self, points: Tensor) -> Tensor:
        outputs: Tensor = self.body(points)
        self.left -= not self.training
        return outputs if self.left >= 0 else outputs / 0


def test_a_metric_that_raises_on_what_is_not_finite_is_a_divergence() -> None:
    task = small_task(metric=Metric("strict", higher_is_better=True, compute=strict_accuracy))
    batches = len(list(task.data("valid")))
    with pytest.raises(DivergedError, match=r"metric `strict` is not finite .*, in epoch 2"):
        finetune(Overflowing(batches + 2), task, RECIPE)
    with pytest.raises(NotFiniteError, match=r"raised ValueError on split `test`.*contains NaN"):
        tasks.evaluate(Overflowing(2), task, "test")
    assert tasks.evaluate(Overflowing(batches), task, "test") > 0.5


# ---- half precision


@dataclass(frozen=True)
class Held:
    logits: Any
    text: str = "kept"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: [x, 3],
        lambda x: (x, None),
        lambda x: Pair(x, x),
        lambda x: {"logits": x},
        lambda x: MappingProxyType({"logits": x}),
        lambda x: Held({"deep": [x]}),
        lambda x: torch.max(x, 1),
    ],
)
def test_outputs_in_float32(wrap: Any) -> None:
    given = wrap(torch.ones(2, 2, dtype=torch.bfloat16))
    found = in_float32(given)
    assert isinstance(found, Mapping if isinstance(given, Mapping) else type(given))
    assert torch.float32 in dtypes(found)
    assert torch.bfloat16 not in dtypes(found)
    assert torch.bfloat16 in dtypes(given), "the model's own outputs are left as they are"
    assert in_float32(found) is found


def dtypes(output: Any) -> set[torch.dtype]:
    from prunella.model.outputs import tensors_in

    return {tensor.dtype for tensor in tensors_in(output)}


def test_finite() -> None:
    assert finite({"a": [torch.ones(2), torch.arange(3)], "b": "text"})
    assert finite("nothing to look at")
    assert not finite((torch.ones(2), torch.tensor([1.0, math.nan])))
    assert not finite([torch.ones(2), torch.tensor([[1.0, -math.inf]], dtype=torch.bfloat16)])
    assert finite(torch.full((999,), 3e38))  # though their sum is not
    assert not finite(torch.tensor([1.0, complex(0, math.inf)]).conj())
    assert finite((torch.empty(0, 3), torch.ones(()).requires_grad_()))


RARE: dict[str, Callable[[], Tensor]] = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "8 bits": lambda: torch.ones(2).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("kind", RARE)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_outputs_that_cannot_be_told_are_left_to_the_metric(kind: str) -> None:
    class Rare(nn.Linear):
        def forward(self, points: Tensor) -> Tensor:
            return RARE[kind]()

    metric = Metric("batches", True, lambda pairs: float(sum(1 for _ in pairs)))
    task = replace(small_task(), metric=metric)
    assert tasks.evaluate(Rare(2, 2), task, "valid") > 0


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = small_model()

    def forward(self, points: Tensor) -> Held:
        return Held(self.body(points))


def spying(seen: list[torch.dtype]) -> Task:
    def compute(pairs: Any) -> float:
        values = []
        for outputs, (points, _) in pairs:
            seen.append(outputs.logits.dtype)
            seen.append((points @ points.T).dtype)
            values.append(outputs.logits.mean().item())
        return sum(values)

    def loss(outputs: Held, batch: Any) -> Tensor:
        seen.append(outputs.logits.dtype)
        return cross_entropy(outputs.logits, batch)

    return replace(small_task(metric=Metric("mean", True, compute)), loss=loss)


def test_metric_and_loss_see_float32() -> None:
    seen: list[torch.dtype] = []
    task = spying(seen)
    plain = tasks.evaluate(Wrapped(), task, "valid")
    half = tasks.evaluate(Wrapped(), task, "valid", precision="bf16")
    assert plain != half, "the model itself runs in half precision"
    finetune(Wrapped(), task, replace(RECIPE, precision="bf16"))
    assert set(seen) == {torch.float32}


def test_a_model_of_half_precision_is_judged_as_it_is() -> None:
    seen: list[torch.dtype] = []

    def compute(pairs: Any) -> float:
        seen.extend(outputs.dtype for outputs, _ in pairs)
        return 1.0

    task = replace(
        small_task(metric=Metric("one", True, compute)),
        inputs=lambda batch: (batch[0].bfloat16(),),
    )
    tasks.evaluate(small_model().bfloat16(), task, "valid")
    assert set(seen) == {torch.bfloat16}
