"""Sensitivity: what is measured, what is predicted from it, and what a kill leaves behind."""

import json
import logging
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import prunella
from prunella.errors import ConfigError, TaskError, WorkspaceError
from prunella.masking import zeroed
from prunella.sensitivity import Sensitivity, analyze, removed
from prunella.sensitivity.measuring import lowest
from tests import oracle
from tests.models import ZOO

Setup = tuple[nn.Module, prunella.Groups, prunella.Scores]
CASE = ZOO["residual"]
RATIOS = (0.1, 0.25, 0.5, 0.75, 0.9)


@pytest.fixture(scope="module")
def setup() -> Setup:
    model = CASE.model()
    groups = prunella.couple(prunella.trace(model, CASE.inputs()))
    return model, groups, prunella.score(model, groups)


class Metric:
    """A metric that is a smooth function of the outputs, and counts its calls."""

    def __init__(self, die_after: int | None = None) -> None:
        self.calls = 0
        self.die_after = die_after

    def __call__(self, model: nn.Module) -> float:
        if self.calls == self.die_after:
            raise KeyboardInterrupt
        self.calls += 1
        assert not any(module.training for module in model.modules())
        with torch.no_grad():
            out = model(*CASE.inputs(seed=3))
        return float(out.softmax(1)[:, 1].mean())


def run(
    setup: Setup,
    evaluate: Callable[[nn.Module], float],
    record: Path | None = None,
    **options: object,
) -> Sensitivity:
    model, groups, scores = setup
    settings = {"metric": "chance", "higher_is_better": True, "ratios": RATIOS, **options}
    return analyze(model, groups, scores, evaluate, record=record, **settings)


# What is measured


def test_every_value_is_that_of_the_plain_loop(setup: Setup) -> None:
    model, groups, scores = setup
    found = run(setup, Metric())
    plain = Metric()
    assert found.baseline == plain(model)
    for group in groups:
        for i, ratio in enumerate(RATIOS):
            count = group.channels - max(1, round((1 - ratio) * group.channels + 1e-9))
            lowest = sorted(range(group.channels), key=lambda c: scores.values[group.name][c])[
                :count
            ]
            dense = oracle.state(model)
            zero(model, groups, group, lowest)
            assert found.curves[group.name][i] == plain(model), (group.name, ratio)
            with torch.no_grad():
                for name, tensor in oracle.tensors(model).items():
                    tensor.copy_(dense[name])
    assert found.channels == {group.name: group.channels for group in groups}


def zero(
    model: nn.Module, groups: prunella.Groups, group: prunella.Group, channels: list[int]
) -> None:
    tensors = oracle.tensors(model)
    with torch.no_grad():
        for axis, positions in group.axes.items():
            assert groups.axes[axis].ndim == 1
            for position in positions[channels].reshape(-1).tolist():
                tensors[axis.tensor].select(axis.dim, position).zero_()


def test_the_model_is_bit_identical_afterwards_and_in_its_own_mode(setup: Setup) -> None:
    model, groups, scores = setup
    before = oracle.state(model)
    model.train()
    run((model, groups, scores), Metric())
    assert all(module.training for module in model.modules())
    model.eval()
    assert oracle.unchanged(model, before)


def test_the_model_is_restored_when_the_metric_raises(setup: Setup) -> None:
    before = oracle.state(setup[0])
    with pytest.raises(KeyboardInterrupt):
        run(setup, Metric(die_after=3))
    assert oracle.unchanged(setup[0], before)


def test_ratios_that_remove_equally_many_are_evaluated_once(setup: Setup) -> None:
    groups = setup[1]
    metric = Metric()
    told: list[tuple[int, int]] = []
    found = run(setup, metric, progress=lambda done, total: told.append((done, total)))
    different = sum(len({removed(r, g.channels) for r in RATIOS} - {0}) for g in groups)
    assert metric.calls == 1 + different < 1 + len(RATIOS) * len(groups)
    assert told == [(i, 1 + different) for i in range(1, 2 + different)]
    for group in groups:
        for ratio, value in zip(RATIOS, found.curves[group.name], strict=True):
            if removed(ratio, group.channels) == 0:
                assert value == found.baseline


# Where the metric is no finite number


class Breaking(Metric):
    """Breaks whenever the first group is cut at the largest ratio, in one way or another."""

    def __init__(self, setup: Setup, how: Callable[[], float]) -> None:
        super().__init__()
        model, groups, scores = setup
        self.how, self.group = how, next(iter(groups))
        count = removed(RATIOS[-1], self.group.channels)
        axis = self.group.axes.__iter__().__next__()
        self.tensor = axis.tensor
        with zeroed(
            model, groups, {self.group.name: lowest(scores.values[self.group.name], count)}
        ):
            self.broken = oracle.tensors(model)[self.tensor].detach().clone()

    def __call__(self, model: nn.Module) -> float:
        value = super().__call__(model)
        if torch.equal(oracle.tensors(model)[self.tensor], self.broken):
            return self.how()
        return value


def divides() -> float:
    return 1 / int("0")


BREAKS = {
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "tensor": lambda: torch.tensor(math.nan),
    "division": divides,
}


@pytest.mark.parametrize("how", BREAKS)
def test_a_cut_that_the_metric_cannot_judge_counts_as_the_worst(
    setup: Setup, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    caplog.set_level(logging.WARNING, "prunella")
    breaking = Breaking(setup, BREAKS[how])
    whole = run(setup, Metric())
    name, last = breaking.group.name, len(RATIOS) - 1
    found = run(setup, breaking, tmp_path / "journal")
    for group, curve in whole.curves.items():
        for i, value in enumerate(curve):
            assert found.curves[group][i] == (None if (group, i) == (name, last) else value)
    assert found.damage(name, 1) >= max(found.damage(each, 1) for each in found.curves)
    assert "`chance` is no finite number with some groups cut" in caplog.text
    assert f"`{name}` at 0.9" in caplog.text
    caplog.clear()
    # It is on record like any other value, and said again.
    again = Breaking(setup, BREAKS[how])
    assert run(setup, again, tmp_path / "journal") == found
    assert again.calls == 0
    assert f"`{name}` at 0.9" in caplog.text
    assert Sensitivity.from_json(found.to_json()) == found
    _, groups, scores = setup
    plan = prunella.allocate(groups, scores, prunella.Budget(macs=0.9), found.damage)
    assert plan.after.macs <= 0.9 * plan.before.macs


def test_two_processes_find_the_same_gaps(setup: Setup) -> None:
    breaking = Breaking(setup, divides)
    assert run(setup, breaking, workers=2) == run(setup, breaking)


def test_a_metric_that_raises_on_outputs_that_are_not_finite_has_no_value(setup: Setup) -> None:
    def strict(model: nn.Module) -> float:
        with torch.no_grad():
            out = model(*CASE.inputs(seed=3))
        if not bool(out.isfinite().all()):
            raise ValueError("Input contains NaN")
        return float(out.softmax(1)[:, 1].mean())

    @contextmanager
    def poisoned(model: nn.Module, groups: Any, gone: Any) -> Iterator[nn.Module]:
        hook = model.register_forward_hook(lambda module, args, out: out * math.nan)
        try:
            yield model
        finally:
            hook.remove()

    found = run(setup, strict, cut=poisoned)
    counts = {group.name: group.channels for group in setup[1]}
    for name, curve in found.curves.items():
        for ratio, value in zip(RATIOS, curve, strict=True):
            assert value == (None if removed(ratio, counts[name]) else found.baseline)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_model_that_raises_with_a_group_cut_has_no_value_there(
    setup: Setup, caplog: pytest.LogCaptureFixture, wrapped: bool
) -> None:
    caplog.set_level(logging.INFO, "prunella")
    model = setup[0]
    breaking, broken = Breaking(setup, lambda: 0.0), False

    def check(module: nn.Module, args: Any) -> None:
        assert not broken, "all of it is zero"

    def judge(model: nn.Module) -> float:
        nonlocal broken
        broken = torch.equal(oracle.tensors(model)[breaking.tensor], breaking.broken)
        try:
            return Metric()(model)
        except AssertionError as cause:
            if not wrapped:
                raise
            raise TaskError(f"judging the model failed: {cause}") from cause

    first = next(iter(model.children()))
    hook = first.register_forward_pre_hook(check)
    try:
        found = run(setup, judge)
    finally:
        hook.remove()
    gaps = [(g, i) for g, curve in found.curves.items() for i, v in enumerate(curve) if v is None]
    assert gaps == [(breaking.group.name, len(RATIOS) - 1)]
    assert "the model raises: AssertionError: all of it is zero" in caplog.text
    assert "or the model raises, which counts as the worst" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no memory"),
        OSError("the weights are gone"),
        RuntimeError("MPS backend out of memory"),  # which has no class of its own
    ],
)
def test_a_model_that_raises_for_want_of_something_ends_the_analysis(
    setup: Setup, error: Exception
) -> None:
    calls = iter(range(1000))

    def check(module: nn.Module, args: Any) -> None:
        if next(calls):  # not of the dense model
            raise error

    first = next(iter(setup[0].children()))
    hook = first.register_forward_pre_hook(check)
    try:
        with pytest.raises(type(error), match=str(error)):
            run(setup, Metric())
    finally:
        hook.remove()


def test_a_metric_that_raises_for_another_reason_ends_the_analysis(setup: Setup) -> None:
    def unreadable() -> float:
        raise ValueError("the labels are gone")

    with pytest.raises(ValueError, match="the labels are gone"):
        run(setup, Breaking(setup, unreadable))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_metric_of_the_dense_model_that_is_not_finite_is_an_error(
    setup: Setup, tmp_path: Path, bad: float
) -> None:
    for _ in range(2):  # it is not on record either
        with pytest.raises(TaskError, match=f"is {bad} of the dense model; it must be a finite"):
            run(setup, lambda model: bad, tmp_path / "journal")


def test_what_counts_where_there_is_no_value() -> None:
    def worst(values: list[float | None], *, higher: bool = True, baseline: float = 0.9) -> float:
        ratios = (0.25, 0.5)
        curves = {"a": tuple(values), "b": (baseline, None)}
        return Sensitivity("m", higher, baseline, ratios, curves, {"a": 8, "b": 8}).worst

    assert worst([0.8, 0.3]) == 0
    assert worst([0.8, -0.3]) == pytest.approx(-0.3)
    assert worst([1.0, 1.5], higher=False) == pytest.approx(1.8)
    assert worst([1.0, 7.5], higher=False) == pytest.approx(7.5)
    assert worst([None, None], higher=False, baseline=0.0) == 1


@pytest.mark.parametrize("higher", [True, False])
def test_a_gap_is_damage(higher: bool) -> None:
    curves = {"g": (0.9, None), "h": (0.9, 0.9)}
    found = Sensitivity("m", higher, 0.9, (0.25, 0.5), curves, {"g": 8, "h": 8})
    assert found.damage("g", 6) == 0
    assert found.damage("g", 4) == pytest.approx(0.9)
    assert found.damage("h", 4) == 0


def test_a_metric_that_changes_the_model_is_found_out() -> None:
    model = CASE.model()
    groups = prunella.couple(prunella.trace(model, CASE.inputs()))

    def train(model: nn.Module) -> float:
        model.train()
        model(*CASE.inputs())
        return 0.5

    with pytest.raises(TaskError, match="evaluating the model changed its weights or buffers"):
        run((model, groups, prunella.score(model, groups)), train)


@pytest.mark.parametrize(
    "ratios", [(), (0.5, 0.3), (0.0, 0.5), (0.5, 1.0), (0.5, 0.5), (math.nan,)]
)
def test_ratios_must_be_ascending_shares(setup: Setup, ratios: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"ascending, each in \(0, 1\), got ratios="):
        run(setup, Metric(), ratios=ratios)


# What a kill leaves behind


def test_an_analysis_killed_after_any_step_goes_on_there(setup: Setup, tmp_path: Path) -> None:
    whole = Metric()
    expected = run(setup, whole)
    record = tmp_path / "sensitivity.jsonl"
    spent = 0
    for alive in (0, 1, 2, 3, 5, 1000):
        metric = Metric(die_after=alive)
        try:
            found = run(setup, metric, record)
        except KeyboardInterrupt:
            found = None
        spent += metric.calls
    assert found == expected
    assert spent == whole.calls, "a step was computed twice, or lost"
    again = Metric(die_after=0)
    assert run(setup, again, record) == expected


def test_a_truncated_last_line_is_computed_again(setup: Setup, tmp_path: Path) -> None:
    record = tmp_path / "sensitivity.jsonl"
    expected = run(setup, Metric(), record)
    content = record.read_bytes()
    draw = random.Random(0)
    for cut in sorted({1, 2, len(content), *(draw.randrange(1, len(content)) for _ in range(12))}):
        record.write_bytes(content[:-cut])
        assert run(setup, Metric(), record) == expected
        assert record.read_bytes() == content


def test_other_ratios_use_what_is_known(setup: Setup, tmp_path: Path) -> None:
    record = tmp_path / "sensitivity.jsonl"
    run(setup, Metric(), record, ratios=(0.25, 0.5))
    metric = Metric()
    found = run(setup, metric, record, ratios=(0.25, 0.5, 0.75))
    assert 0 < metric.calls <= len(setup[1])
    assert found == run(setup, Metric(), ratios=(0.25, 0.5, 0.75))


@pytest.mark.parametrize(
    ("part", "options"),
    [
        ("data", {"data": "other"}),
        ("metric", {"metric": "other"}),
        ("metric", {"higher_is_better": False}),
    ],
)
def test_a_stale_record_is_computed_again_and_the_reason_said(
    setup: Setup,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    part: str,
    options: dict[str, object],
) -> None:
    record = tmp_path / "sensitivity.jsonl"
    run(setup, Metric(), record, data="one")
    metric = Metric()
    with caplog.at_level(logging.WARNING, "prunella"):
        run(setup, metric, record, **{"data": "one", **options})
    assert metric.calls > 1
    assert f"is computed again: {part} changed" in caplog.text


def test_other_weights_and_other_scores_make_a_record_stale(
    setup: Setup, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, groups, scores = setup
    record = tmp_path / "sensitivity.jsonl"
    run(setup, Metric(), record)
    other = CASE.model(seed=1)
    with caplog.at_level(logging.WARNING, "prunella"):
        run((other, groups, scores), Metric(), record)
    assert "weights changed" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "prunella"):
        run((other, groups, prunella.score(other, groups, "random")), Metric(), record)
    assert "scores changed" in caplog.text


def test_another_function_makes_a_record_stale(
    setup: Setup, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def mean(model: nn.Module) -> float:
        with torch.no_grad():
            return float(model(*CASE.inputs(seed=3)).mean())

    def largest(model: nn.Module) -> float:
        with torch.no_grad():
            return float(model(*CASE.inputs(seed=3)).max())

    run(setup, mean, tmp_path / "journal")
    with caplog.at_level(logging.WARNING, "prunella"):
        assert run(setup, largest, tmp_path / "journal") == run(setup, largest)
    assert "evaluate changed since it was recorded" in caplog.text


def test_other_data_to_refit_on_make_a_record_stale(
    setup: Setup, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []
    for seed in (1, 1, 2):
        metric, data = Metric(), prunella.Calibration([(CASE.inputs(seed), {})])
        cut = prunella.reconstruct(*setup, data).cut
        with caplog.at_level(logging.WARNING, "prunella"):
            run(setup, metric, tmp_path / "sensitivity.jsonl", cut=cut)
        calls.append(metric.calls)
    assert calls[1] == 0
    assert calls[2] == calls[0] > 1
    assert "is computed again: cut changed" in caplog.text


@pytest.mark.parametrize("line", [0, 1, 3])
def test_a_tampered_record_is_an_error_that_names_the_line(
    setup: Setup, tmp_path: Path, line: int
) -> None:
    record = tmp_path / "sensitivity.jsonl"
    run(setup, Metric(), record)
    lines = record.read_text().splitlines(keepends=True)
    changed = lines.copy()
    changed[line] = (
        changed[line].replace("0.", "1.", 1) if line else changed[line].replace("chance", "change")
    )
    assert changed != lines
    record.write_text("".join(changed))
    metric = Metric()
    with pytest.raises(WorkspaceError, match=rf"line {line + 1} of .* was changed or damaged"):
        run(setup, metric, record)
    assert metric.calls == 0
    record.write_text("".join(lines[:line] + lines[line + 1 :]))
    with pytest.raises(WorkspaceError, match="was changed or damaged"):
        run(setup, metric, record)
    assert record.read_text() != "", "the user's file is left for them to look at"


def test_a_record_that_cannot_be_written_is_an_error_and_loses_nothing(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "sensitivity.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(setup, Metric(die_after=3), record)
    kept = record.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(WorkspaceError, match=r"No space left on device.*held is intact"):
            run(setup, Metric(), record)
    assert record.read_bytes() == kept
    assert run(setup, Metric(), record) == run(setup, Metric())
    (tmp_path / "folder").mkdir()
    with pytest.raises(WorkspaceError, match="cannot be read"):
        run(setup, Metric(), tmp_path / "folder")


# What is predicted


def curve(values: list[float], *, higher: bool = True, channels: int = 10) -> Sensitivity:
    ratios = tuple(round(0.1 * (i + 1), 1) for i in range(len(values)))
    return Sensitivity("m", higher, 0.9, ratios, {"g": tuple(values)}, {"g": channels})


def test_damage_is_the_measured_loss_where_it_was_measured() -> None:
    values = [0.9 - 0.01 * i**2 for i in range(1, 10)]
    found = curve(values)
    assert found.damage("g", 10) == 0
    for i, value in enumerate(values, start=1):
        assert found.damage("g", 10 - i) == pytest.approx(0.9 - value)


def test_damage_is_linear_between_and_goes_on_past_the_last() -> None:
    found = Sensitivity("m", True, 0.9, (0.25, 0.5), {"g": (0.8, 0.5)}, {"g": 100})
    assert found.damage("g", 90) == pytest.approx(0.04)
    assert found.damage("g", 60) == pytest.approx(0.1 + 0.6 * 0.3)
    assert found.damage("g", 0) == pytest.approx(0.4 + 0.5 * 1.2)
    flat = Sensitivity("m", True, 0.9, (0.25, 0.5), {"g": (0.1, 0.1)}, {"g": 100})
    assert flat.damage("g", 0) == pytest.approx(1.6), "past a plateau the average slope counts"


def test_an_improvement_is_no_damage_and_direction_matters() -> None:
    assert curve([0.95, 0.92, 0.91]).damage("g", 7) == 0
    assert curve([0.95, 0.95, 0.95], higher=False).damage("g", 9) == pytest.approx(0.05)
    assert curve([0.1, 0.1, 0.1], higher=False).damage("g", 7) == 0


def test_damage_never_falls_as_channels_go_whatever_was_measured() -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        found = curve(draw.uniform(0, 1, 9).tolist(), channels=int(draw.integers(1, 40)))
        damages = [found.damage("g", kept) for kept in range(found.channels["g"], -1, -1)]
        assert damages[0] == 0
        assert all(a <= b + 1e-12 for a, b in pairwise(damages))


def test_a_noisy_point_is_averaged_with_its_neighbours() -> None:
    found = curve([0.9, 0.7, 0.8, 0.6])
    assert found.damage("g", 8) == pytest.approx(0.15)
    assert found.damage("g", 7) == pytest.approx(0.15)
    assert found.damage("g", 6) == pytest.approx(0.3)


def test_damage_of_a_group_that_was_not_analysed() -> None:
    with pytest.raises(ConfigError, match=r"knows no group 'h'.*run the analysis again"):
        curve([0.8]).damage("h", 1)
    with pytest.raises(ConfigError, match="keeps 0 to 10, got kept_channels=11"):
        curve([0.8]).damage("g", 11)


def test_allocation_takes_sensitivity(setup: Setup) -> None:
    """The group that costs the metric nothing goes first."""
    _, groups, scores = setup
    names = [group.name for group in groups]
    for spared in names:
        curves = {name: ((0.9, 0.9) if name == spared else (0.2, 0.0)) for name in names}
        found = Sensitivity(
            "m", True, 0.9, (0.3, 0.6), curves, {group.name: group.channels for group in groups}
        )
        plan = prunella.allocate(groups, scores, prunella.Budget(macs=0.95), found.damage)
        assert [n for n in names if len(plan.channels[n]) < plan.sizes[n]] == [spared]


# JSON


def test_json_round_trip_is_the_identity(setup: Setup) -> None:
    found = run(setup, Metric())
    assert Sensitivity.from_json(found.to_json()) == found
    json.loads(found.to_json())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda text: text[: len(text) // 2], "not a sensitivity written by Prunella"),
        (lambda text: "[]", "not a sensitivity written by Prunella"),
        (lambda text: text.replace('"baseline"', '"base"'), "KeyError: 'baseline'"),
        (lambda text: text.replace('"schema": 1', '"schema": 99'), "another schema than 1"),
        (lambda text: text.replace("0.25,", ""), "one value for each of the"),
    ],
)
def test_bad_json_is_an_error(setup: Setup, change: Callable[[str], str], match: str) -> None:
    text = run(setup, Metric()).to_json()
    with pytest.raises(WorkspaceError, match=match):
        Sensitivity.from_json(change(text))
