"""The fast mode: what is predicted from a few samples, and what it costs."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

import prunella
from prunella.calibration import Calibration
from prunella.errors import ConfigError, TaskError
from prunella.repairing.divergence import distance, divergence, divergence_from
from prunella.sensitivity import DIVERGENCE, Sensitivity, analyze, estimate
from prunella.sensitivity.estimating import _between, _levels
from prunella.tasks import evaluate
from tests import oracle, tiny_task

RATIOS = (0.25, 0.5, 0.75)
TASK = tiny_task.task()
Setup = tuple[nn.Module, prunella.Groups, prunella.Scores]


@pytest.fixture(scope="module")
def setup() -> Setup:
    model = TASK.model()
    groups = prunella.couple(prunella.trace(model, TASK.example_inputs))
    return model, groups, prunella.score(model, groups)


def samples(count: int) -> Calibration:
    images = next(iter(TASK.data("train")))[0]
    return Calibration([((images[:count],), {})])


def loss(model: nn.Module) -> float:
    """The cross-entropy on the valid split."""
    with torch.no_grad():
        found = [TASK.loss(model(batch[0]), batch) for batch in TASK.data("valid")]
    return float(torch.stack(found).mean())


def losses(found: Sensitivity) -> np.ndarray:
    sign = -1 if found.higher_is_better else 1
    return sign * (np.array(list(found.curves.values())) - found.baseline).reshape(-1)


def test_without_a_metric_it_is_the_distance(setup: Setup) -> None:
    model, groups, scores = setup
    found = estimate(model, groups, scores, samples(16), ratios=RATIOS)
    plain = analyze(
        model,
        groups,
        scores,
        divergence_from(model, samples(16)),
        metric=DIVERGENCE,
        higher_is_better=False,
        ratios=RATIOS,
        memory=0,
    )
    assert found == plain
    assert found.baseline == pytest.approx(0, abs=1e-6)


def test_the_order_is_that_of_the_distance_in_units_of_the_metric(setup: Setup) -> None:
    model, groups, scores = setup
    calls: list[int] = []

    def counted(given: nn.Module) -> float:
        calls.append(1)
        return loss(given)

    before = oracle.state(model)
    near = analyze(
        model,
        groups,
        scores,
        divergence_from(model, samples(16), distance),
        metric="distance",
        higher_is_better=False,
        ratios=RATIOS,
    )
    found = estimate(
        model, groups, scores, samples(16), counted, metric="loss", ratios=RATIOS, probes=4
    )
    assert oracle.unchanged(model, before)
    assert len(calls) == 5
    assert found.metric == "loss"
    assert found.baseline == loss(model)
    order = np.argsort(losses(near))
    assert (np.diff(losses(found)[order]) >= 0).all()
    plain = analyze(
        model, groups, scores, loss, metric="loss", higher_is_better=False, ratios=RATIOS
    )
    assert spearmanr(losses(found), losses(plain)).statistic > 0.9
    worst = losses(plain).max()
    assert losses(found).max() == pytest.approx(worst, rel=0.3)


def test_distance_is_the_root_of_each_samples_divergence() -> None:
    dense, other = torch.randn(6, 5), torch.randn(6, 5)
    each = [float(divergence(b, a)) for a, b in zip(dense.split(1), other.split(1), strict=True)]
    assert float(distance(other, dense)) == pytest.approx(np.sqrt(each).mean(), rel=1e-4)
    assert float(distance(dense + 3, dense)) == pytest.approx(0, abs=1e-3)
    pixels = [scores[:, :, None, None].expand(6, 5, 2, 2) for scores in (other, dense)]
    assert float(distance(*pixels)) == pytest.approx(float(distance(other, dense)), rel=1e-4)
    three = torch.randn(2, 3, 4)
    assert float(distance(three + 1, three)) == float(divergence(three + 1, three))


def test_the_direction_of_the_metric(setup: Setup) -> None:
    model, groups, scores = setup
    found = estimate(
        model,
        groups,
        scores,
        samples(16),
        lambda given: evaluate(given, TASK, "valid"),
        metric="accuracy",
        higher_is_better=True,
        ratios=RATIOS,
    )
    assert found.higher_is_better
    assert (losses(found) >= 0).all()
    assert losses(found).max() > 0
    assert Sensitivity.from_json(found.to_json()) == found


def test_it_goes_on_after_a_kill(setup: Setup, tmp_path: Path) -> None:
    model, groups, scores = setup
    record = tmp_path / "journal"
    first = estimate(model, groups, scores, samples(8), ratios=RATIOS, record=record)
    size = record.stat().st_size
    assert estimate(model, groups, scores, samples(8), ratios=RATIOS, record=record) == first
    assert record.stat().st_size == size


def test_what_makes_no_sense_is_an_error(setup: Setup) -> None:
    model, groups, scores = setup
    with pytest.raises(ConfigError, match="at least one cut is evaluated"):
        estimate(model, groups, scores, samples(8), loss, probes=0)
    with pytest.raises(TaskError, match="the metric `loss` is nan of the dense model"):
        estimate(model, groups, scores, samples(8), lambda m: float("nan"), metric="loss")


@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_a_cut_that_the_metric_cannot_judge_counts_as_the_worst(
    setup: Setup, caplog: pytest.LogCaptureFixture, bad: str
) -> None:
    model, groups, scores = setup
    whole = estimate(model, groups, scores, samples(8), loss, metric="loss", ratios=RATIOS)
    worst = max(value for curve in whole.values.values() for value in curve)

    def breaking(other: nn.Module) -> float:
        found = loss(other)
        return float(bad) if found >= 0.99 * worst else found

    caplog.set_level("WARNING", "prunella")
    found = estimate(model, groups, scores, samples(8), breaking, metric="loss", ratios=RATIOS)
    assert "`loss` is no finite number with 1 of the 6 cuts" in caplog.text
    highest = max(value for curve in found.values.values() for value in curve)
    assert highest >= 2 * found.baseline
    assert all(math.isfinite(value) for curve in found.values.values() for value in curve)


def test_levels_are_corners_of_a_line_that_rises() -> None:
    distances, fitted = _levels([4.0, 1.0, 2.0, 3.0], [0.5, -0.1, 0.3, 0.2])
    assert distances.tolist() == [2.5, 4]
    assert fitted.tolist() == [0.25, 0.5]
    assert [len(part) for part in _levels([0.0, 1.0], [0.0, -0.2])] == [0, 0]
    # A loss that gains farther off outweigh.
    assert [len(part) for part in _levels([1.0, 2.0, 3.0], [-0.2, 0.1, -0.3])] == [0, 0]


def test_the_line_ends_at_the_largest_loss() -> None:
    distances, fitted = _levels([1.0, 2.0, 4.0], [0.1, 0.9, 0.7])
    assert distances.tolist() == [1, 3, 4]
    assert fitted.tolist() == pytest.approx([0.1, 0.8, 0.9])
    distances, fitted = _levels([1.0, 2.0, 4.0], [0.1, 0.8, 0.8])
    assert distances.tolist() == [1, 3]
    assert fitted.tolist() == pytest.approx([0.1, 0.8])


def test_between_corners_the_loss_is_a_power_of_the_distance() -> None:
    corners = np.array([1.0, 4.0]), np.array([0.1, 0.8])
    assert _between(*corners, 2.0) == pytest.approx((0.1 * 0.8) ** 0.5)
    assert _between(*corners, 0.01) == pytest.approx(0.1 * 0.01**1.5)
    assert _between(*corners, 8.0) == pytest.approx(0.8)
    assert _between(*corners, 0.0) == 0
    steep = np.array([1.0, 1.1]), np.array([1e-9, 1.0])
    assert _between(*steep, 0.1) == pytest.approx(1e-11)
    assert _between(np.array([2.0]), np.array([0.3]), 1.0) == pytest.approx(0.15)
    assert _between(np.array([]), np.array([]), 1.0) == 0


def test_cuts_that_a_probe_finds_harmless_keep_their_order(setup: Setup) -> None:
    model, groups, scores = setup
    near = analyze(
        model,
        groups,
        scores,
        divergence_from(model, samples(16), distance),
        metric="distance",
        higher_is_better=False,
        ratios=RATIOS,
    )
    calls: list[int] = []

    def noisy(given: nn.Module) -> float:
        """Say of the first cuts, the least harmful ones, that they help."""
        calls.append(1)
        return loss(given) - (0.5 if len(calls) in (2, 3) else 0)

    found = estimate(
        model, groups, scores, samples(16), noisy, metric="loss", ratios=RATIOS, probes=4
    )
    order = np.argsort(losses(near))
    steps = np.diff(losses(near)[order])
    assert (np.diff(losses(found)[order])[steps > 1e-6] > 0).all()
    assert (losses(found) >= 0).all()
