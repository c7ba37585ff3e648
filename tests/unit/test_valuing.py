"""What groups are worth: between the measured ratios, and of a network that is sure of itself."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from prunella.repairing.divergence import divergence, softened
from prunella.sensitivity import Sensitivity
from prunella.sensitivity.valuing import Worth

CHANNELS = 16


def worth(losses: tuple[float, ...], errors: np.ndarray) -> Worth:
    sensitivity = Sensitivity(
        metric="divergence",
        higher_is_better=False,
        baseline=0.0,
        ratios=(0.25, 0.5, 0.75),
        curves={"group": losses},
        channels={"group": CHANNELS},
    )
    return Worth(SimpleNamespace(errors={"group": errors}), sensitivity)  # type: ignore[arg-type]


def damages(found: Worth) -> np.ndarray:
    return np.array([found.damage("group", CHANNELS - gone) for gone in range(CHANNELS + 1)])


ERRORS = np.linspace(0, 1, CHANNELS + 1) ** 3


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_a_power_of_the_error_is_found_from_three_points(power: float) -> None:
    true = 0.3 * ERRORS**power
    found = damages(worth(tuple(true[[4, 8, 12]]), ERRORS))
    assert found[4:] == pytest.approx(true[4:], rel=1e-6)
    assert found[:5] == pytest.approx(true[4] * ERRORS[:5] / ERRORS[4], rel=1e-6)


def test_damage_has_no_kinks_where_it_was_measured() -> None:
    """Straight lines made plans in multiples of a quarter of the channels."""
    true = 0.3 * ERRORS**1.4
    steps = np.diff(damages(worth(tuple(true[[4, 8, 12]]), ERRORS)))[4:]
    assert steps[1:] / steps[:-1] == pytest.approx(
        np.diff(true)[5:] / np.diff(true)[4:-1], rel=1e-6
    )


@pytest.mark.parametrize(
    "losses",
    [
        (0.0, 0.0, 0.0),
        (0.0, 0.0, 0.2),
        (-0.1, 0.1, 0.1),
        (0.3, 0.2, 0.1),
        (1e-9, 1e-3, 40.0),
        (0.1, 0.1, 1e38),
    ],
)
@pytest.mark.parametrize("errors", [ERRORS, np.where(ERRORS < 0.1, 0.0, ERRORS), 0 * ERRORS])
def test_damage_never_falls_and_is_finite(losses: tuple[float, ...], errors: np.ndarray) -> None:
    found = damages(worth(losses, errors))
    assert np.isfinite(found).all()
    assert found[0] == 0
    assert (np.diff(found) >= -1e-9 * found[1:]).all()


@pytest.mark.parametrize("errors", [ERRORS, np.where(ERRORS < 0.1, 0.0, ERRORS), 0 * ERRORS])
def test_what_was_measured_is_believed_where_the_error_says_nothing(errors: np.ndarray) -> None:
    losses = (0.1, 0.2, 0.7)
    found = damages(worth(losses, errors))
    assert found[[4, 8, 12]] == pytest.approx(losses)
    assert found[-1] >= losses[-1]


def test_what_a_sure_network_loses_is_seen_at_a_temperature() -> None:
    dense = torch.tensor([[30.0, 0, 0, 0], [0, 30.0, 0, 0]])
    other = dense + torch.tensor([0.0, 0, 4, -4])
    assert float(divergence(other, dense)) < 1e-6
    assert float(softened(other, dense)) > 1e-3
    assert float(softened(dense, dense)) == pytest.approx(0, abs=1e-6)
    close = dense + 0.2 * torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    soft = (dense / 4).softmax(1)
    moved = (close - dense) - (soft * (close - dense)).sum(1, keepdim=True)
    assert float(softened(close, dense)) == pytest.approx(
        float((soft * moved.square()).sum(1).mean() / 2), rel=0.1
    )


def test_what_are_no_class_scores_is_compared_as_ever() -> None:
    three = torch.randn(2, 3, 4)
    assert softened(three + 1, three) == divergence(three + 1, three)
