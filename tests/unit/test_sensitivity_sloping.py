"""Losses predicted with the slopes that all samples of the metric have."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

import prunella
from prunella.calibration import Calibration
from prunella.errors import ConfigError
from prunella.masking import zeroed
from prunella.model.modes import copied
from prunella.repairing.divergence import distance, divergence_from
from prunella.sensitivity import Sensitivity, analyze, estimate, removed
from prunella.sensitivity.measuring import lowest
from prunella.sensitivity.sloping import loss_on, slopes_of
from tests import oracle

RATIOS = (0.05, 0.1, 0.2, 0.3, 0.5)
Setup = tuple[nn.Module, prunella.Groups, prunella.Scores]


def drawn(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw images of five kinds, so noisy that no network tells all of them."""
    kinds = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (count,), generator=draw)
    return kinds[labels] / 2 + torch.randn(count, 3, 8, 8, generator=draw), labels


def samples(sizes: list[int], seed: int) -> Calibration:
    """Draw images with their loss, in batches of those sizes."""
    images, labels = (part.split(sizes) for part in drawn(sum(sizes), seed))
    return Calibration(
        [((part,), {}) for part in images],
        lambda outputs, index: F.cross_entropy(outputs, labels[index]),
    )


def unlabelled(data: Calibration) -> Calibration:
    return Calibration(data.batches)


@pytest.fixture(scope="module")
def setup() -> Setup:
    """Return a small network, trained a little."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 48, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(48, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 5),
    )
    images, labels = drawn(512, seed=9)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    model.eval()
    groups = prunella.couple(prunella.trace(model, torch.randn(1, 3, 8, 8)))
    return model, groups, prunella.score(model, groups, "magnitude")


class Gate(nn.Module):
    """Multiplies some channels of what it is given."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.factor = torch.ones(channels, dtype=torch.float64)

    def forward(self, value: Tensor) -> Tensor:
        return value * self.factor[:, None, None]


def test_a_slope_is_the_derivative_of_the_mean_loss_along_a_gate(setup: Setup) -> None:
    model, groups, _ = setup
    model = copied(model).double()
    data = samples([7, 16, 1], seed=1)
    data = replace(data, batches=[((image.double(),), {}) for (image,), _ in data.batches])
    found, dense = slopes_of(model, groups, data)
    assert dense == pytest.approx(loss_on(data)(model))
    layers = list(model.children())
    producers = {0: 2, 2: 4, 4: 6}  # where a gate goes, after the activation of each convolution
    checked = 0
    for group in groups:
        made = min(int(axis.tensor.split(".")[0]) for axis in group.axes)
        gate = Gate(group.channels)
        at = producers[made]
        gated = nn.Sequential(*layers[:at], gate, *layers[at:])
        evaluate = loss_on(data)
        for channel in range(group.channels):
            ends = []
            for factor in (1 - 1e-5, 1 + 1e-5):
                gate.factor[channel] = factor
                ends.append(evaluate(gated))
            gate.factor[channel] = 1
            slope = (ends[0] - ends[1]) / 2e-5
            assert found.values[group.name][channel] == pytest.approx(slope, rel=1e-4, abs=1e-6)
            checked += 1
    assert checked == 112
    assert any((found.values[group.name] < 0).any() for group in groups)
    assert any((found.values[group.name] > 0).any() for group in groups)


class Attention(nn.Module):
    """One head whose queries and keys no weight reads: they are multiplied with each other."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(12, 16), nn.Linear(12, 16), nn.Linear(12, 8)
        self.out = nn.Linear(8, 5)

    def forward(self, value: Tensor) -> Tensor:
        q, k, v = (layer(value)[:, None] for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=0.05)
        return self.out(mixed[:, 0].mean(1))


def test_where_factors_of_a_product_go_the_slope_is_that_of_the_product() -> None:
    torch.manual_seed(0)
    model = Attention().double().eval()
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randn(64, 7, 12, generator=draw, dtype=torch.float64)
    labels = torch.randint(0, 5, (64,), generator=draw)
    data = Calibration([((inputs,), {})], lambda outputs, _: F.cross_entropy(outputs, labels))
    groups = prunella.couple(prunella.trace(model, inputs[:2]), heads="inside")
    (group,) = [g for g in groups if any(axis.tensor == "q.weight" for axis in g.axes)]
    found = slopes_of(model, groups, data)[0].values[group.name]
    evaluate, rises = loss_on(data), []
    for channel in range(group.channels):
        with zeroed(model, groups, {group.name: [channel]}) as cut:
            rises.append(evaluate(cut))
    risen = np.array(rises) - evaluate(model)
    assert np.corrcoef(found, risen)[0, 1] > 0.99
    assert (found @ risen) / (found @ found) == pytest.approx(1, abs=0.05)


def test_batches_count_by_their_size(setup: Setup) -> None:
    model, groups, _ = setup
    whole, apart = samples([24], seed=2), samples([20, 3, 1], seed=2)
    assert loss_on(apart)(model) == pytest.approx(loss_on(whole)(model), rel=1e-6)
    one, other = (slopes_of(model, groups, data)[0].values for data in (whole, apart))
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-7)


def losses(found: Sensitivity) -> np.ndarray:
    return np.array(list(found.values.values())).reshape(-1)


def test_with_labels_losses_are_predicted_better(setup: Setup) -> None:
    """The samples of the metric are others than those that distances are measured on."""
    model, groups, scores = setup
    before = oracle.state(model)
    ranks = []
    for seed in (3, 5, 7):
        metric, others = samples([150, 50], seed), unlabelled(samples([64], seed + 1))
        evaluate = loss_on(metric)
        named: dict[str, Any] = {"metric": "loss", "ratios": RATIOS}
        plain = analyze(model, groups, scores, evaluate, higher_is_better=False, **named)
        without = estimate(model, groups, scores, others, evaluate, **named)
        found = estimate(model, groups, scores, others, labelled=metric, ratios=RATIOS)
        assert (found.metric, found.baseline) == ("loss", plain.baseline)
        assert (losses(found) < found.baseline).any()  # cuts that help, on these samples
        assert Sensitivity.from_json(found.to_json()) == found
        ranks.append([spearmanr(losses(one), losses(plain)).statistic for one in (without, found)])
    assert oracle.unchanged(model, before)
    unaided, aided = np.mean(ranks, axis=0)
    assert aided > 0.94
    assert aided > unaided + 0.03


def test_slopes_count_while_outputs_move_little(setup: Setup) -> None:
    """What is beyond them is in the order of distance."""
    model, groups, scores = setup
    metric, others = samples([150, 50], seed=3), unlabelled(samples([16], seed=4))
    found = estimate(model, groups, scores, others, labelled=metric, ratios=RATIOS)
    away = losses(
        analyze(
            model,
            groups,
            scores,
            divergence_from(model, others, distance),
            metric="distance",
            higher_is_better=False,
            ratios=RATIOS,
        )
    )
    slopes = slopes_of(model, groups, metric)[0].values
    straight = [
        slopes[group.name][lowest(scores.values[group.name], removed(r, group.channels))].sum()
        for group in groups
        for r in RATIOS
    ]
    assert away.min() < 0.1 < 0.5 < away.max()
    beyond = losses(found) - found.baseline - np.array(straight) / (1 + (away / 0.25) ** 4)
    assert (np.diff(beyond[np.argsort(away)]) >= -1e-9).all()
    assert beyond.max() > 0.1


def test_what_labels_do_not_go_with_is_an_error(setup: Setup) -> None:
    model, groups, scores = setup
    data = samples([8], seed=5)
    with pytest.raises(ConfigError, match=r"Calibration\(batches, loss\)"):
        estimate(model, groups, scores, data, labelled=unlabelled(data))
    with pytest.raises(ConfigError, match="a metric that is a loss"):
        estimate(model, groups, scores, data, lambda m: 1.0, labelled=data, higher_is_better=True)
    with pytest.raises(ConfigError, match="leave out `curvature`, or `labelled`"):
        estimate(model, groups, scores, data, labelled=data, curvature=scores)
    with pytest.raises(ConfigError, match="at least one cut"):
        estimate(model, groups, scores, data, labelled=data, probes=0)
    with pytest.raises(ConfigError, match="`Calibration` is expected here, got list"):
        estimate(model, groups, scores, data, labelled=[data])  # type: ignore[arg-type]

    @contextmanager
    def other(model: nn.Module, groups: Any, removed: Any) -> Iterator[nn.Module]:
        with zeroed(model, groups, removed) as cut:
            yield cut

    with pytest.raises(ConfigError, match="leave out `cut`, or `labelled`"):
        estimate(model, groups, scores, data, labelled=data, cut=other)


def test_a_metric_that_is_not_the_loss_of_these_samples_is_an_error(setup: Setup) -> None:
    model, groups, scores = setup
    data, others = samples([8], seed=5), samples([24], seed=6)
    evaluate = loss_on(data)
    for wrong in (lambda m: 100 * evaluate(m), loss_on(others)):
        with pytest.raises(ConfigError, match="they must be the same, of the same samples"):
            estimate(model, groups, scores, data, wrong, labelled=data, ratios=(0.5,))
    estimate(model, groups, scores, data, evaluate, labelled=data, ratios=(0.5,))


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda out, _: out.exp().sum(1), r"of shape \(8,\)"),
        (lambda out, _: out.sum().item(), "of float"),
        (lambda out, _: out.sum() * float("nan"), "no finite number"),
    ],
)
def test_a_loss_that_is_no_finite_number_is_an_error(setup: Setup, loss: Any, said: str) -> None:
    model, groups, scores = setup
    data = Calibration(samples([8], seed=5).batches, loss)
    with pytest.raises(ConfigError, match=f"the loss of `labelled` is {said} on batch 0"):
        estimate(model, groups, scores, data, labelled=data, ratios=(0.5,))


def test_the_loss_of_a_cut_model_may_be_no_number(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    model, groups, scores = setup
    data = samples([40], seed=5)
    whole = loss_on(data)(model)
    given = data.loss
    assert given is not None

    def breaking(outputs: Tensor, index: int) -> Tensor:
        found = given(outputs, index)
        return found if found < whole + 0.5 else found * float("nan")

    found = estimate(model, groups, scores, data, labelled=replace(data, loss=breaking))
    assert "`loss` is no finite number with" in caplog.text
    assert np.isfinite(losses(found)).all()
