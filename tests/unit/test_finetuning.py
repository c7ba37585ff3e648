"""The training loop: it learns, resumes exactly, and fails in the open."""

import copy
import errno
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import prunella
from prunella.errors import BudgetError, ConfigError, TaskError, WorkspaceError
from prunella.finetuning import (
    DECAYS,
    DivergedError,
    Recipe,
    checkpoint,
    cut_moments,
    feeding,
    finetune,
)
from prunella.finetuning.averaging import Average
from prunella.finetuning.features import Features, points_of
from prunella.finetuning.feeding import Feed, own_randomness
from prunella.finetuning.moments import digest_moments, read_moments, write_moments
from prunella.finetuning.schedule import factor, warmup_steps
from prunella.model.carrying import plan_of
from prunella.progress import silent
from prunella.tasks import Metric, evaluate
from tests.unit.small_task import Points, small_model, small_task

RECIPE = Recipe(epochs=4, lr=0.05, distill=0.0)


def same(first: nn.Module, second: nn.Module) -> bool:
    others = second.state_dict()
    return all(torch.equal(value, others[name]) for name, value in first.state_dict().items())


class Images(nn.Module):
    """A convolution before the small network, fed with the points as images of 4 channels."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.rest = small_model()

    def forward(self, points: Tensor) -> Tensor:
        images = points[:, :, None, None].expand(-1, -1, 4, 4)
        outputs: Tensor = self.rest(self.conv(images).mean((2, 3)))
        return outputs


# ---- schedule


@pytest.mark.parametrize("decay", DECAYS)
def test_decay_starts_at_one_and_never_rises(decay: Any) -> None:
    factors = [factor(step, 40, decay=decay, warmup=0.0) for step in range(40)]
    assert factors[0] == 1.0
    assert all(later <= earlier for earlier, later in pairwise(factors))
    assert min(factors) > 0


def test_decay_values_by_hand() -> None:
    assert factor(20, 40, decay="cosine", warmup=0.0) == pytest.approx(0.5)
    assert factor(10, 40, decay="linear", warmup=0.0) == pytest.approx(0.75)
    assert [factor(step, 4, decay="step", warmup=0.0) for step in range(4)] == [1, 1, 0.1, 0.01]
    assert factor(39, 40, decay="constant", warmup=0.0) == 1.0


def test_warmup_rises_to_the_whole_rate() -> None:
    factors = [factor(step, 20, decay="linear", warmup=0.2) for step in range(5)]
    assert warmup_steps(20, 0.2) == 4
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_one_step_and_steps_beyond_the_last() -> None:
    assert factor(0, 1, decay="cosine", warmup=0.9) == 1.0
    assert factor(99, 10, decay="linear", warmup=0.0) == factor(9, 10, decay="linear", warmup=0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs is at least 1, got 0"),
        ({"lr": 0.0}, "lr is greater than 0"),
        ({"lr": math.nan}, "lr is greater than 0 and finite, got nan"),
        ({"lr": math.inf}, "lr is greater than 0 and finite, got inf"),
        ({"decay": "exp"}, "decay is one of cosine, linear, step, constant, got 'exp'"),
        ({"warmup": 1.0}, r"warmup is a share of the steps in \[0, 1\)"),
        ({"distill": 1.5}, r"distill is a share of the loss in \[0, 1\], got 1.5"),
        ({"temperature": 0.0}, "temperature is greater than 0"),
        ({"feature_distill": -0.1}, "feature_distill is at least 0 and finite, got -0.1"),
        ({"feature_distill": math.nan}, "feature_distill is at least 0 and finite, got nan"),
        ({"ema": 1.0}, r"ema is in \[0, 1\)"),
        ({"optimizer": "lion"}, "optimizer is 'sgd' or 'adamw', got 'lion'"),
        ({"precision": "fp16"}, "precision is 'no' or 'bf16', got 'fp16'"),
        ({"seed": -1}, "seed is at least 0"),
    ],
)
def test_recipe_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe(**change)


# ---- learning


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        replace(RECIPE, optimizer="adamw", lr=0.01),
        replace(RECIPE, momentum=0.0, lr=0.3),
        replace(RECIPE, ema=0.9),
        replace(RECIPE, precision="bf16"),
        replace(RECIPE, distill=1.0),
    ],
    ids=["sgd", "adamw", "no momentum", "ema", "bf16", "teacher alone"],
)
def test_it_learns_and_leaves_the_model_untouched(recipe: Recipe) -> None:
    task, model = small_task(), small_model()
    before = copy.deepcopy(model)
    teacher = finetune(model, task, RECIPE).model if recipe.distill else None
    done = finetune(model, task, recipe, teacher=teacher)
    assert same(model, before)
    assert model.training
    assert done.model.training
    assert done.metric > 0.9
    assert done.metric == evaluate(done.model, task, "valid")
    assert [epoch.epoch for epoch in done.history] == [1, 2, 3, 4]
    assert done.finished
    assert done.seconds > 0


def test_the_user_s_module_is_not_patched() -> None:
    done = finetune(small_model(), small_task(), replace(RECIPE, epochs=1, precision="bf16"))
    assert set(vars(done.model)) == set(vars(small_model()))
    assert all(parameter.dtype == torch.float32 for parameter in done.model.parameters())


def test_channels_last_is_taken_back() -> None:
    orders = []

    def look(model: nn.Module, inputs: Any) -> None:
        weight = model.get_parameter("conv.weight")
        orders.append(weight.is_contiguous(memory_format=torch.channels_last))

    model = Images()
    model.register_forward_pre_hook(look)
    done = finetune(model, small_task(), replace(RECIPE, epochs=1, channels_last=True))
    assert orders
    assert all(orders)
    assert done.model.get_parameter("conv.weight").is_contiguous()


def test_channels_last_is_resumed_exactly(tmp_path: Path) -> None:
    recipe = replace(RECIPE, channels_last=True, precision="bf16", ema=0.5)
    wanted = finetune(Images(), small_task(), recipe).model
    with pytest.raises(KeyboardInterrupt):
        finetune(Images(), small_task(), recipe, checkpoint=tmp_path, report=Interrupt(2))
    assert same(finetune(Images(), small_task(), recipe, checkpoint=tmp_path).model, wanted)


def test_masked_training_keeps_what_is_removed_at_zero(tmp_path: Path) -> None:
    model, inputs = small_model(), torch.randn(3, 4)
    plan = prunella.prune(model, inputs, ratio=0.5).plan
    recipe = replace(RECIPE, ema=0.5)
    with pytest.raises(KeyboardInterrupt):
        finetune(model, small_task(), recipe, plan=plan, checkpoint=tmp_path, report=Interrupt(2))
    done = finetune(model, small_task(), recipe, plan=plan, checkpoint=tmp_path).model
    assert same(done, finetune(model, small_task(), recipe, plan=plan).model)
    assert same(done, prunella.mask(done, plan))
    assert not same(done, prunella.mask(model, plan))
    pruned = prunella.transform(done, plan, inputs)
    assert torch.allclose(pruned.eval()(inputs), done.eval()(inputs), atol=1e-6)


def test_same_seed_same_weights_other_seed_others() -> None:
    task, model = small_task(), small_model()
    first = finetune(model, task, RECIPE).model
    assert same(first, finetune(model, task, RECIPE).model)
    assert not same(first, finetune(model, task, replace(RECIPE, seed=1)).model)


def test_global_random_generators_are_given_back() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    finetune(small_model(), small_task(), replace(RECIPE, epochs=1))
    assert torch.equal(torch.rand(3), wanted)


def test_report_can_stop() -> None:
    seen = []

    def report(epoch: int, loss: float | None, metric: float) -> bool:
        seen.append((epoch, loss, metric))
        return epoch == 2

    done = finetune(small_model(), small_task(), RECIPE, report=report)
    assert not done.finished
    assert [epoch for epoch, *_ in seen] == [1, 2]
    assert [(epoch.epoch, epoch.loss, epoch.metric) for epoch in done.history] == seen


def test_progress_counts_every_step() -> None:
    counts: dict[str, int] = {}

    def progress(label: str, total: int | None) -> Any:
        counts[label] = counts.get(label, 0)

        class Stage:
            def __enter__(self) -> Callable[[int], None]:
                return lambda count: counts.update({label: counts[label] + count})

            def __exit__(self, *why: object) -> None:
                pass

        return Stage()

    finetune(small_model(), small_task(), replace(RECIPE, epochs=2), progress=progress)
    assert counts == {"finetuning, epoch 1/2": 6, "finetuning, epoch 2/2": 6, "valid": 12}


def test_frozen_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"nothing to finetune. Call `model.requires_grad_"):
        finetune(small_model().requires_grad_(False), small_task(), RECIPE)


def test_average_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    average = Average(model, 0.5)
    with torch.no_grad():
        model.weight.fill_(1.0)
    average.update(0)  # keeps 1/10 of 0
    assert average.values["weight"].item() == pytest.approx(0.9)
    with torch.no_grad():
        model.weight.fill_(2.0)
    average.update(1000)  # keeps 0.5 of 0.9
    assert average.values["weight"].item() == pytest.approx(1.45)
    with average.in_place():
        assert model.weight.item() == pytest.approx(1.45)
    assert model.weight.item() == 2.0


# ---- order of the data


def test_generic_loader_and_dataloader_repeat_an_epoch() -> None:
    data = TensorDataset(torch.arange(20.0))
    for loader in (
        DataLoader(data, batch_size=3, shuffle=True),
        DataLoader(data, batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(9)),
    ):
        with own_randomness(torch.device("cpu")):
            feed = Feed(loader, seed=1)
            epochs = [torch.cat([batch[0] for batch in feed.epoch(n)]) for n in (1, 2, 1)]
        assert torch.equal(epochs[0], epochs[2])
        assert not torch.equal(epochs[0], epochs[1])


class Endless(IterableDataset[int]):
    """Samples without an end; a length says how many make an epoch."""

    def __iter__(self) -> Iterator[int]:
        return itertools.count()

    def __len__(self) -> int:
        return 12


@pytest.mark.timeout(60)
def test_an_epoch_of_a_loader_without_an_end_has_its_length() -> None:
    loader = DataLoader(Endless(), batch_size=4)
    with own_randomness(torch.device("cpu")):
        assert Feed(loader, 1).steps(silent) == 3
        assert [batch[0].item() for batch in Feed(loader, 1).epoch(1)] == [0, 4, 8]
        assert [batch[0].item() for batch in Feed(loader, 1, 1, 2).epoch(1)] == [4]


def test_counting_for_long_says_what_may_be_wrong(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(feeding, "_LONG", -1.0)
    batches = Feed(_Unsized(), 1)
    with own_randomness(torch.device("cpu")):
        assert batches.steps(silent) == 3
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 1
    assert "If it has no end, give it a `__len__`" in warned[0]


class _Unsized:
    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.zeros(3, 1))


@pytest.mark.parametrize("as_list", [True, False])
def test_processes_share_the_batches(as_list: bool) -> None:
    data = TensorDataset(torch.arange(20.0))
    loader: Any = DataLoader(data, batch_size=3, shuffle=not as_list)
    loader = list(loader) if as_list else loader
    with own_randomness(torch.device("cpu")):
        whole = list(Feed(loader, 1).epoch(1))
        shares = [list(Feed(loader, 1, index, 2).epoch(1)) for index in range(2)]
        assert Feed(loader, 1, 0, 2).steps(silent) == 3
    assert [len(share) for share in shares] == [3, 3]
    for index, share in enumerate(shares):
        for mine, all_of in zip(share, whole[index::2], strict=False):
            assert torch.equal(mine[0], all_of[0])


def test_loader_without_length_is_counted() -> None:
    class Endless:
        def __iter__(self) -> Any:
            return iter(list(Points(0)))

    done = finetune(
        small_model(),
        replace(small_task(), data=lambda split: Endless()),
        replace(RECIPE, epochs=1, decay="linear", warmup=0.0),
    )
    assert done.history[0].lr == pytest.approx(0.05 / 6)


# ---- features


class Residual(nn.Module):
    """Two stages of one residual block each, the second at half the resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 12, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.norm2 = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 2)

    def forward(self, points: Tensor) -> Tensor:
        images = points[:, None, None, :].expand(-1, -1, 4, -1)
        hidden = torch.relu(self.stem(images))
        hidden = torch.relu(hidden + self.conv2(torch.relu(self.norm1(self.conv1(hidden)))))
        hidden = torch.relu(self.norm2(self.down(hidden)))
        outputs: Tensor = self.head(hidden.mean((2, 3)))
        return outputs


def cut_residual() -> tuple[nn.Module, nn.Module, prunella.Plan]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dense = Residual().eval()
    done = prunella.prune(dense, torch.randn(2, 4), ratio=0.5)
    return dense, done.model, done.plan


def test_points_are_the_ends_of_stages_on_the_kept_channels() -> None:
    dense, pruned, plan = cut_residual()
    inputs = (torch.randn(3, 4),)
    points = points_of(pruned, dense, inputs)
    assert [point.place for point in points] == [("down", "in"), ("norm2", "out"), ("head", "in")]
    assert [point.theirs for point in points] == [
        plan.kept["down.weight"][1],
        plan.kept["norm2.weight"][0],
        plan.kept["head.weight"][1],
    ]
    assert all(len(point.theirs or ()) in (4, 8) for point in points)
    assert [str(point) for point in points][:2] == ["what `down` reads", "what `norm2` makes"]
    assert all(module._forward_hooks == {} for module in [*dense.modules(), *pruned.modules()])
    assert not dense.training


def test_features_of_a_model_just_cut_are_those_of_the_masked_teacher() -> None:
    dense, pruned, plan = cut_residual()
    inputs = (torch.randn(3, 4),)
    masked = prunella.mask(dense, plan)
    watched = Features(pruned.eval(), masked, points_of(pruned, dense, inputs))
    assert torch.allclose(pruned(*inputs), masked(*inputs), atol=1e-6)
    pairs = watched.take()
    assert len(pairs) == 3
    for mine, theirs in pairs:
        assert torch.allclose(mine, theirs, atol=1e-6)
    assert watched.take() == []
    watched.close()
    pruned(*inputs)
    assert watched.take() == []


def test_masked_training_compares_the_same_channels() -> None:
    dense, _, plan = cut_residual()
    masked = prunella.mask(dense, plan)
    points = points_of(masked, dense, (torch.randn(3, 4),), plan)
    assert [point.mine for point in points] == [point.theirs for point in points]
    assert points[0].mine == plan.kept["down.weight"][1]


def test_channels_of_a_second_prune_are_the_teacher_s() -> None:
    dense, pruned, first = cut_residual()
    second = prunella.prune(pruned, torch.randn(2, 4), ratio=0.5)
    (point, *_) = points_of(second.model, dense, (torch.randn(3, 4),))
    known, again = first.kept["down.weight"][1], second.plan.kept["down.weight"][1]
    assert point.theirs == tuple(known[index] for index in again)


def test_a_model_without_modules_in_common_has_no_points() -> None:
    with pytest.raises(TaskError, match="Set `feature_distill = 0`"):
        points_of(Residual(), small_model(), (torch.zeros(3, 4),))


def test_features_alone_bring_the_model_to_its_teacher() -> None:
    dense, pruned, _ = cut_residual()
    task = replace(small_task(), loss=lambda outputs, batch: 0 * outputs.sum())
    recipe = replace(RECIPE, feature_distill=1.0, weight_decay=0.0)
    losses = [epoch.loss or 0 for epoch in finetune(pruned, task, recipe, teacher=dense).history]
    assert losses[-1] < 0.7 * losses[0]
    assert finetune(pruned, task, recipe).history[0].loss == 0  # nobody teaches
    assert all(not module._forward_hooks for module in dense.modules())


# ---- the optimizer's state through a prune


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_moments_are_cut_like_the_weights(optimizer: Any) -> None:
    dense, _, plan = cut_residual()
    recipe = replace(RECIPE, epochs=1, optimizer=optimizer, lr=0.01, carry_state=True)
    done = finetune(dense, small_task(), recipe)
    parameters = dict(done.model.named_parameters())
    assert done.moments.keys() == parameters.keys()
    pruned = prunella.transform(done.model, plan)
    cut = cut_moments(done.moments, plan)
    for name, parameter in pruned.named_parameters():
        for key, value in cut[name].items():
            whole = done.moments[name][key]
            if key == "step":
                assert value == whole
                continue
            assert value.shape == parameter.shape
            for dim, kept in plan.kept.get(name, {}).items():
                whole = whole.index_select(dim, torch.tensor(kept))
            assert torch.equal(value, whole)
    keys = {"sgd": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}
    assert all(set(values) == keys[optimizer] for values in cut.values())


def test_moments_of_slices_with_factors() -> None:
    _, _, plan = cut_residual()
    count = len(plan.kept["conv1.weight"][0])
    plan = replace(plan, factors={"conv1.weight": {0: (2.0,) * count}})
    whole = torch.ones(12, 8, 3, 3)
    moments = {"conv1.weight": {"exp_avg": whole, "exp_avg_sq": whole, "step": torch.tensor(3.0)}}
    cut = cut_moments(moments, plan)["conv1.weight"]
    assert cut["exp_avg"].unique().tolist() == [0.5]
    assert cut["exp_avg_sq"].unique().tolist() == [0.25]
    assert cut["step"] == 3


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_goes_on_with_the_moments_given(optimizer: Any) -> None:
    # Two trainings of which the second begins as the first ended are one long training.
    recipe = replace(RECIPE, optimizer=optimizer, lr=0.01, decay="constant", warmup=0.0)
    recipe = replace(recipe, carry_state=True, epochs=1)
    quiet = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    points = Points(0)
    task = replace(small_task(points), data=lambda split: points)
    points.set_epoch = lambda epoch: None  # type: ignore[method-assign]
    whole = finetune(quiet, task, replace(recipe, epochs=2))
    first = finetune(quiet, task, recipe)
    known = digest_moments(first.moments)
    second = finetune(first.model, task, recipe, moments=first.moments)
    assert same(second.model, whole.model)
    assert digest_moments(first.moments) == known
    assert not same(finetune(first.model, task, recipe).model, whole.model)
    ignored = finetune(first.model, task, replace(recipe, carry_state=False), moments=first.moments)
    assert ignored.moments == {}
    assert same(ignored.model, finetune(first.model, task, recipe).model)


def test_moments_survive_a_kill(tmp_path: Path) -> None:
    recipe = replace(RECIPE, carry_state=True, feature_distill=0.5)
    before = finetune(small_model(), small_task(), replace(recipe, epochs=1))
    write_moments(before.moments, tmp_path / "moments.safetensors")
    moments = read_moments(tmp_path / "moments.safetensors")
    assert digest_moments(moments) == digest_moments(before.moments)
    how: dict[str, Any] = {"teacher": small_model(3), "moments": moments}
    wanted = finetune(before.model, small_task(), recipe, **how)
    how["checkpoint"] = tmp_path / "training"
    with pytest.raises(KeyboardInterrupt):
        finetune(before.model, small_task(), recipe, report=Interrupt(2), **how)
    found = finetune(before.model, small_task(), recipe, **how)
    assert found.resumed == 2
    assert same(found.model, wanted.model)
    assert digest_moments(found.moments) == digest_moments(wanted.moments)
    again = finetune(before.model, small_task(), recipe, **{**how, "moments": None})
    assert again.resumed == 0
    assert "the moments changed" in again.note


def test_moments_of_another_model() -> None:
    recipe = replace(RECIPE, carry_state=True)
    for moments, message in (
        ({"9.weight": {"momentum_buffer": torch.zeros(2)}}, "it has no `9.weight`"),
        ({"0.bias": {"momentum_buffer": torch.zeros(3)}}, r"`0.bias` has shape \(3,\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            finetune(small_model(), small_task(), recipe, moments=moments)


@pytest.mark.parametrize(("before", "after"), [("sgd", "adamw"), ("adamw", "sgd")])
def test_moments_of_another_optimizer(before: Any, after: Any) -> None:
    recipe = replace(RECIPE, carry_state=True, epochs=1, lr=0.01)
    done = finetune(small_model(), small_task(), replace(recipe, optimizer=before))
    with pytest.raises(ConfigError, match=rf"of another optimizer: `.* mean nothing to '{after}'"):
        finetune(done.model, small_task(), replace(recipe, optimizer=after), moments=done.moments)


# ---- resuming


class Interrupt:
    """A report that plays Ctrl-C after an epoch was saved."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, epoch: int, loss: float | None, metric: float) -> bool:
        if epoch == self.after:
            raise KeyboardInterrupt
        return False


@pytest.mark.parametrize(
    "recipe",
    [
        replace(RECIPE, warmup=0.3),
        replace(RECIPE, optimizer="adamw", lr=0.01, ema=0.9, decay="linear"),
        replace(RECIPE, precision="bf16", momentum=0.0, decay="step"),
        replace(RECIPE, distill=0.5),
        replace(RECIPE, feature_distill=1.0),
    ],
    ids=["sgd", "adamw ema", "bf16", "distill", "features"],
)
@pytest.mark.parametrize("where", ["inside an epoch", "between epochs"])
def test_resumed_training_is_bit_identical(recipe: Recipe, where: str, tmp_path: Path) -> None:
    model, teacher = small_model(), small_model(3)
    wanted = finetune(model, small_task(), recipe, teacher=teacher)

    broken = Points(0)
    report = None
    if where == "inside an epoch":
        broken.raise_at, broken.error = (3, 2), KeyboardInterrupt()
    else:
        report = Interrupt(2)
    with pytest.raises(KeyboardInterrupt):
        finetune(
            model, small_task(broken), recipe, teacher=teacher, checkpoint=tmp_path, report=report
        )
    found = finetune(model, small_task(), recipe, teacher=teacher, checkpoint=tmp_path)
    assert found.resumed == 2
    assert same(found.model, wanted.model)
    assert [(epoch.loss, epoch.metric, epoch.lr) for epoch in found.history] == [
        (epoch.loss, epoch.metric, epoch.lr) for epoch in wanted.history
    ]


def test_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first = finetune(small_model(), small_task(), RECIPE, checkpoint=tmp_path)
    silent_data = Points(0)
    silent_data.raise_at = (5, 0)
    again = finetune(small_model(), small_task(silent_data), RECIPE, checkpoint=tmp_path)
    assert again.resumed == 4
    assert again.history == first.history
    assert same(first.model, again.model)


def test_reports_of_saved_epochs_are_made_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        finetune(small_model(), small_task(), RECIPE, checkpoint=tmp_path, report=Interrupt(2))
    done = finetune(
        small_model(),
        small_task(),
        RECIPE,
        checkpoint=tmp_path,
        report=lambda epoch, loss, metric: epoch == 2,
    )
    assert len(done.history) == 2


def test_checkpoint_of_another_training_is_not_continued(tmp_path: Path) -> None:
    finetune(small_model(), small_task(), RECIPE, checkpoint=tmp_path)
    done = finetune(small_model(), small_task(), replace(RECIPE, lr=0.01), checkpoint=tmp_path)
    assert done.resumed == 0
    assert "was not continued: recipe.lr (0.05 -> 0.01) changed" in done.note
    done = finetune(small_model(7), small_task(), replace(RECIPE, lr=0.01), checkpoint=tmp_path)
    assert done.resumed == 0
    assert "the model changed" in done.note


def test_checkpoint_of_other_data_or_another_loss_is_not_continued(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        finetune(small_model(), small_task(), RECIPE, checkpoint=tmp_path, report=Interrupt(2))
    mended = Points(0)
    mended.labels[-1] = 1 - mended.labels[-1]
    done = finetune(small_model(), small_task(mended), RECIPE, checkpoint=tmp_path)
    assert done.resumed == 0
    assert "was not continued: the data.train changed" in done.note
    assert same(done.model, finetune(small_model(), small_task(mended), RECIPE).model)

    task = replace(small_task(mended), loss=lambda outputs, batch: outputs.square().mean())
    done = finetune(small_model(), task, RECIPE, checkpoint=tmp_path)
    assert done.resumed == 0
    assert "was not continued: the data.code changed" in done.note
    assert finetune(small_model(), task, RECIPE, checkpoint=tmp_path).resumed == 4


def test_what_tells_a_training_apart_may_be_known(tmp_path: Path) -> None:
    known = {"train": "the first", "valid": "half"}
    finetune(small_model(), small_task(), RECIPE, checkpoint=tmp_path, data=known)
    done = finetune(small_model(), small_task(Points(5)), RECIPE, checkpoint=tmp_path, data=known)
    assert done.resumed == 4
    other = {**known, "train": "the second"}
    done = finetune(small_model(), small_task(), RECIPE, checkpoint=tmp_path, data=other)
    assert "data.train ('the first' -> 'the second') changed" in done.note


def test_only_the_last_epoch_is_kept(tmp_path: Path) -> None:
    (tmp_path / ".unfinished-left").write_text("by a killed process")
    finetune(small_model(), small_task(), RECIPE, checkpoint=tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["checkpoint.json", "epoch-0004.safetensors"]


# ---- failing


@pytest.mark.parametrize("cut", [0, 10, -1])
@pytest.mark.parametrize("name", ["checkpoint.json", "epoch-0004.safetensors"])
def test_truncated_checkpoint(name: str, cut: int, tmp_path: Path) -> None:
    folder = tmp_path / "training"
    finetune(small_model(), small_task(), RECIPE, checkpoint=folder)
    path = folder / name
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(
        WorkspaceError, match=rf"`.*{name}` is damaged: .*delete the folder `.*training`"
    ):
        finetune(small_model(), small_task(), RECIPE, checkpoint=folder)


def test_tampered_checkpoint(tmp_path: Path) -> None:
    finetune(small_model(), small_task(), RECIPE, checkpoint=tmp_path)
    path = tmp_path / "checkpoint.json"
    data = json.loads(path.read_text())
    data["body"]["values"]["history"][3]["metric"] = 1.0
    data["body"]["epoch"] = 3
    path.write_text(json.dumps(data))
    with pytest.raises(WorkspaceError, match="content does not match its sha256"):
        finetune(small_model(), small_task(), RECIPE, checkpoint=tmp_path)


def test_missing_tensors(tmp_path: Path) -> None:
    finetune(small_model(), small_task(), RECIPE, checkpoint=tmp_path)
    (tmp_path / "epoch-0004.safetensors").unlink()
    with pytest.raises(WorkspaceError, match=r"epoch-0004.safetensors` is damaged: it cannot be"):
        finetune(small_model(), small_task(), RECIPE, checkpoint=tmp_path)


@pytest.mark.parametrize("step", ["tensors", "sync", "rename"])
def test_full_disk_keeps_the_epoch_before(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = finetune(small_model(), small_task(), RECIPE)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(epoch: int, loss: float | None, metric: float) -> bool:
        if epoch == 2 and step == "tensors":
            monkeypatch.setattr(checkpoint, "save_file", full)
        elif epoch == 2 and step == "sync":
            monkeypatch.setattr(os, "fsync", full)
        elif epoch == 2:
            monkeypatch.setattr(Path, "replace", full)
        return False

    with pytest.raises(WorkspaceError, match=r"No space left on device.*free some space"):
        finetune(small_model(), small_task(), RECIPE, checkpoint=tmp_path, report=fill)
    monkeypatch.undo()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["checkpoint.json", "epoch-0002.safetensors"]
    done = finetune(small_model(), small_task(), RECIPE, checkpoint=tmp_path)
    assert done.resumed == 2
    assert same(done.model, wanted.model)


def test_full_disk_met_by_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(WorkspaceError, match=r"cannot write .*No space left.*last finished epoch"):
        finetune(small_model(), small_task(), RECIPE, checkpoint=tmp_path)


def test_loader_that_raises_mid_epoch(tmp_path: Path) -> None:
    broken = Points(0)
    broken.raise_at = (3, 2)
    with pytest.raises(
        TaskError,
        match=r"split `train` in epoch 3 raised at batch 2: RuntimeError: the disk of images is",
    ) as caught:
        finetune(small_model(), small_task(broken), RECIPE, checkpoint=tmp_path)
    assert caught.value.__cause__ is broken.error
    done = finetune(small_model(), small_task(), RECIPE, checkpoint=tmp_path)
    assert done.resumed == 2


@pytest.mark.parametrize("recipe", [replace(RECIPE, lr=1e30), replace(RECIPE, lr=1e20, warmup=0.9)])
def test_divergence_names_epoch_and_step(recipe: Recipe) -> None:
    with pytest.raises(
        DivergedError, match=r"in epoch \d, step \d+: the training has diverged. Lower the learning"
    ) as caught:
        finetune(small_model(), small_task(), recipe)
    assert len(caught.value.history) == caught.value.epoch - 1


def test_the_first_step_not_finite_is_named() -> None:
    calls = []

    def loss(outputs: Tensor, batch: Any) -> Tensor:
        calls.append(1)
        return outputs.sum() * (math.nan if len(calls) == 9 else 1.0)

    with pytest.raises(DivergedError, match="the loss is nan, in epoch 2, step 3"):
        finetune(small_model(), replace(small_task(), loss=loss), replace(RECIPE, lr=1e-4))


def test_a_metric_not_finite_is_a_divergence() -> None:
    calls = []

    def compute(pairs: Any) -> float:
        calls.append(len(list(pairs)))
        return math.nan if len(calls) == 2 else 0.5

    task = small_task(metric=Metric("score", higher_is_better=True, compute=compute))
    with pytest.raises(
        DivergedError, match="metric `score` is not finite on split `valid`, in epoch 2, step 6"
    ) as caught:
        finetune(small_model(), task, RECIPE)
    assert len(caught.value.history) == 1


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda outputs, batch: outputs, r"must be a tensor of one number, got \(8, 2\)"),
        (lambda outputs, batch: 3.0, "must be a tensor of one number, got float"),
        (lambda outputs, batch: outputs["x"], "the loss of task `points` raised"),
    ],
)
def test_bad_loss(loss: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        finetune(small_model(), replace(small_task(), loss=loss), RECIPE)


def test_bad_inputs() -> None:
    task = replace(small_task(), inputs=lambda batch: batch[0])
    with pytest.raises(TaskError, match="must return a tuple of positional inputs, got Tensor"):
        finetune(small_model(), task, RECIPE)


# ---- the user's own loop


def test_own_training_loop(tmp_path: Path) -> None:
    calls = []

    def train(model: nn.Module, epochs: int) -> nn.Module:
        calls.append(epochs)
        return finetune(model, small_task(), replace(RECIPE, epochs=epochs)).model

    task = replace(small_task(), train=train)
    first = finetune(small_model(), task, RECIPE, checkpoint=tmp_path)
    again = finetune(small_model(), task, RECIPE, checkpoint=tmp_path)
    assert calls == [4]
    assert first.metric > 0.9
    assert same(first.model, again.model)
    assert first.history == again.history


def test_own_training_loop_is_seeded() -> None:
    drawn = []

    def train(model: nn.Module, epochs: int) -> nn.Module:
        drawn.append(torch.rand(3).tolist())
        return model

    task = replace(small_task(), train=train)
    for seed in (1, 1, 2):
        torch.manual_seed(len(drawn))
        finetune(task.model(), task, Recipe(epochs=1, seed=seed))
    assert drawn[0] == drawn[1] != drawn[2]


def test_own_training_loop_that_raises() -> None:
    def train(model: nn.Module, epochs: int) -> nn.Module:
        raise ValueError("no licence")

    with pytest.raises(TaskError, match="training loop of task `points` raised ValueError: no lic"):
        finetune(small_model(), replace(small_task(), train=train), RECIPE)


def test_own_training_loop_that_returns_something_else() -> None:
    task = replace(small_task(), train=lambda model, epochs: 3)  # type: ignore[arg-type,return-value]
    with pytest.raises(TaskError, match=r"must return the model .* got int"):
        finetune(small_model(), task, RECIPE)


@pytest.mark.parametrize(
    "wrap",
    [
        copy.deepcopy,
        nn.DataParallel,
        torch.compile,
        lambda model: torch.compile(nn.DataParallel(copy.deepcopy(model))),
        torch.optim.swa_utils.AveragedModel,
    ],
)
def test_own_training_loop_that_returns_a_copy_or_a_wrapper(wrap: Any, tmp_path: Path) -> None:
    def train(model: nn.Module, epochs: int) -> nn.Module:
        returned: nn.Module = wrap(model)
        with torch.no_grad():
            for parameter in returned.parameters():
                parameter.fill_(0.5)
        return returned

    task = replace(small_task(), train=train)
    _, pruned, _ = cut_residual()
    for model in (small_model(), pruned):
        model.module = nn.Identity()  # a name that wrappers have too
        found = finetune(model, replace(task, metric=NO_METRIC), RECIPE).model
        assert type(found) is type(model)
        assert plan_of(found) == plan_of(model)
        assert all((parameter == 0.5).all() for parameter in found.parameters())


NO_METRIC = Metric("none", higher_is_better=True, compute=lambda pairs: 0.0)


def test_own_training_loop_that_returns_another_model() -> None:
    other = nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 2))
    for returned in (other, nn.DataParallel(other)):
        task = replace(small_task(), train=lambda model, epochs, made=returned: made)
        with pytest.raises(
            TaskError, match=r"must return the model it was given .* with other tensors \(`"
        ):
            finetune(small_model(), task, RECIPE)


# ---- batches a norm cannot learn from


def test_a_last_batch_of_one_sample_names_the_remedy() -> None:
    points = Points(0, count=9, size=8)
    whole = list(points)
    task = replace(
        small_task(), data=lambda split: [*whole, (points.points[-1:], points.labels[-1:])]
    )
    with pytest.raises(
        TaskError, match=r"ValueError in training mode, on a batch of 1 sample.*drop_last=True"
    ) as caught:
        finetune(small_model(), task, RECIPE)
    assert not isinstance(caught.value, DivergedError)


def test_a_model_that_raises_while_training_is_named_with_its_line() -> None:
    class Raising(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = small_model()

        def forward(self, points: Tensor) -> Tensor:
            if self.training:
                raise KeyError("no targets")
            made: Tensor = self.body(points)
            return made

    with pytest.raises(
        TaskError, match=r"8 samples at .*test_finetuning.py:\d+ .*no targets"
    ) as caught:
        finetune(Raising(), small_task(), RECIPE)
    assert "drop_last" not in str(caught.value)


# ---- several processes


SCRIPT = """
import sys
from pathlib import Path
import torch
from accelerate import PartialState
from safetensors.torch import save_file
from prunella.finetuning import Recipe, finetune
from prunella.experiments import Space, search
from tests.unit.small_task import small_model, small_task

torch.set_num_threads(1)
folder = Path(sys.argv[1])
recipe = Recipe(epochs=3, lr=0.05, ema=0.5, feature_distill=1.0)
done = finetune(
    small_model(), small_task(), recipe, teacher=small_model(3), checkpoint=folder / "training"
)
index = PartialState().process_index
assert PartialState().num_processes == 2
save_file(done.model.state_dict(), folder / f"finetuned-{index}.safetensors")
space = Space(Recipe(epochs=2, distill=0.0), (0.05, 1e30))
found = search(small_model(), small_task(), space, folder=folder / "search")
assert [experiment.state for experiment in found.experiments] == ["complete", "failed"]
assert found.epochs == 3, found.experiments
save_file(found.model.state_dict(), folder / f"searched-{index}.safetensors")
PartialState().destroy_process_group()
"""


def launched(folder: Path, text: str) -> None:
    """Run a script in two processes, with the folder as its argument."""
    script = folder / "train.py"
    script.write_text(text)
    # What `accelerate launch` itself starts for several accelerators; for CPUs it wants mpirun.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command += ["2", str(script), str(folder)]
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr[-4000:]


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    launched(tmp_path, SCRIPT)
    for name in ("finetuned", "searched"):
        first, second = (load_file(tmp_path / f"{name}-{index}.safetensors") for index in range(2))
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert torch.equal(value, second[key]), key
    recipe = Recipe(epochs=3, lr=0.05, ema=0.5, feature_distill=1.0)
    alone = finetune(small_model(), small_task(), recipe, teacher=small_model(3))
    assert not torch.equal(alone.model.state_dict()["0.weight"], first["0.weight"])


ALIKE = """
import os
import sys
from pathlib import Path
import torch
from accelerate import PartialState
from prunella.finetuning import Recipe, finetune
from tests.unit.small_task import Points, small_model, small_task

torch.set_num_threads(1)
index, folder = int(os.environ["RANK"]), Path(sys.argv[1])
for _ in range(2):
    told = {"code": f"of process {index}"}  # as a task's may be that holds its number
    done = finetune(
        small_model(), small_task(), Recipe(epochs=1), checkpoint=folder / "one", data=told
    )
    assert done.note == "", done.note
points = Points(0)
points.raise_at = (1, 3) if index == 1 else None
try:
    finetune(small_model(), small_task(points), Recipe(epochs=1), checkpoint=folder / "other")
except Exception as error:
    (folder / f"said-{index}").write_text(str(error))
PartialState().wait_for_everyone()
PartialState().destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_agree_on_what_a_checkpoint_is_made_of(tmp_path: Path) -> None:
    launched(tmp_path, ALIKE)
    one, other = ((tmp_path / f"said-{index}").read_text() for index in range(2))
    assert one == other
    assert "the disk of images is gone" in one


FAILING = """
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
import torch
from accelerate import PartialState
from torch import nn
from prunella.finetuning import Recipe, finetune
from prunella.experiments import Space, search
from prunella.tasks import accuracy, cross_entropy
from tests.unit.small_task import Points, small_model, small_task

torch.set_num_threads(1)
index, said = int(os.environ["RANK"]), {}


class Model(nn.Module):
    def __init__(self, look):
        super().__init__()
        self.body, self.look = small_model(), look

    def forward(self, points):
        outputs = self.body(points)
        if self.training:
            self.look(outputs)
        return outputs


def failing(process, calls):
    left = [calls]

    def look(*_):
        left[0] -= 1
        if index == process and left[0] == 0:
            raise ValueError("that is all")

    return look


def strict(outputs):
    if index == 1:
        assert outputs.isfinite().all()


def first(look, then):
    def both(*given):
        look()
        return then(*given)

    return both


task, points = small_task(), Points(0)
for name, look, lrs in (
    ("forward", failing(0, 3), (0.05,)),
    ("strict forward", strict, (1e30, 0.05)),
):
    space = Space(Recipe(epochs=2, distill=0.0), lrs, trials=2)
    folder = Path(sys.argv[1]) / name
    try:
        found = search(Model(look), task, space, folder=folder)
        said[name] = [[each.state, each.reason] for each in found.experiments]
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"
points.raise_at = (1, 3) if index == 1 else None
metric = replace(accuracy(), compute=first(failing(1, 1), accuracy().compute))
cases = {
    "loader": (small_task(points), {}),
    "inputs": (replace(task, inputs=first(failing(0, 2), task.inputs)), {}),
    "loss": (replace(task, loss=first(failing(1, 3), cross_entropy)), {}),
    "metric": (replace(task, metric=metric), {}),
    "report": (task, {"report": failing(0, 2)}),
}
for name, (given, more) in cases.items():
    try:
        finetune(small_model(), given, Recipe(epochs=2, distill=0.0), **more)
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"
(Path(sys.argv[1]) / f"said-{index}.json").write_text(json.dumps(said))
PartialState().wait_for_everyone()
PartialState().destroy_process_group()
"""


@pytest.mark.slow
def test_what_fails_in_one_of_two_processes_fails_in_both(tmp_path: Path) -> None:
    launched(tmp_path, FAILING)
    one, other = (json.loads((tmp_path / f"said-{i}.json").read_text()) for i in range(2))
    assert one.pop("report") == "ValueError: that is all"
    assert other.pop("report") == "TaskError: process 0 raised ValueError: that is all"
    assert one == other
    assert "raised at batch 3: RuntimeError: the disk of images is gone" in one["loader"]
    assert "`inputs` of task `points` raised ValueError: that is all" in one["inputs"]
    assert "the loss of task `points` raised ValueError: that is all" in one["loss"]
    assert "after epoch 1 of finetuning: judging the model on split `valid`" in one["metric"]
    assert "raised ValueError in training mode" in one["forward"]
    (failed, why), (complete, _) = one["strict forward"]
    assert (failed, complete) == ("failed", "complete")
    assert "is not finite, in epoch 1" in why


def test_errors_come_through_to_another_process() -> None:
    diverged = DivergedError("the loss is nan", 2, 3)
    for error in (diverged, BudgetError("no plan", 0.25), TaskError("no data")):
        found = copy.copy(error)  # made anew as it is on the other side
        assert type(found) is type(error)
        assert str(found) == str(error)
        assert vars(found) == vars(error)
