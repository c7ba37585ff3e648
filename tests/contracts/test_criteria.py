"""What every importance criterion owes: a suite that each member of the catalogue passes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import prunella
from prunella import CRITERIA
from prunella.criteria import Magnitude, Random
from tests import oracle
from tests.models import ZOO

BLIND = {"random"}
"""Criteria that do not look at the weights."""

SLICES = [torch.arange(1.0, 13).reshape(4, 3), torch.arange(24.0, 4, -1).reshape(4, 5)]


@pytest.mark.parametrize("name", sorted(CRITERIA))
class TestCriterion:
    """One suite, every criterion."""

    def test_one_finite_float_per_channel(self, name: str) -> None:
        for count in (1, 2, 7):
            found = CRITERIA[name]([torch.randn(count, 3), torch.randn(count, 1)])
            assert found.shape == (count,)
            assert found.isfinite().all()
            assert found.is_floating_point()

    def test_the_same_slices_score_the_same(self, name: str) -> None:
        again = [matrix.clone() for matrix in SLICES]
        assert torch.equal(CRITERIA[name](SLICES), CRITERIA[name](again))

    def test_the_slices_are_not_changed(self, name: str) -> None:
        given = [matrix.clone() for matrix in SLICES]
        CRITERIA[name](given)
        assert all(torch.equal(a, b) for a, b in zip(given, SLICES, strict=True))

    def test_zero_tensors_score_finite(self, name: str) -> None:
        found = CRITERIA[name]([torch.zeros(5, 3), torch.zeros(5, 2)])
        assert found.isfinite().all()

    def test_permuting_channels_permutes_scores(self, name: str) -> None:
        if name in BLIND:
            pytest.skip("does not look at the weights")
        order = torch.tensor([2, 0, 3, 1])
        found = CRITERIA[name]([matrix[order] for matrix in SLICES])
        torch.testing.assert_close(found, CRITERIA[name](SLICES)[order])

    def test_higher_means_keep(self, name: str) -> None:
        if name in BLIND:
            pytest.skip("does not look at the weights")
        slices = [torch.ones(4, 3), torch.ones(4, 5)]
        for matrix in slices:
            matrix[2] *= 0.01
        assert CRITERIA[name](slices).argmin() == 2

    @pytest.mark.parametrize("model_name", ["grouped_conv", "flatten", "tied_weights", "shuffle"])
    def test_every_group_of_a_model_is_scored(self, name: str, model_name: str) -> None:
        case = ZOO[model_name]
        model = case.model()
        before = oracle.state(model)
        groups = prunella.couple(prunella.trace(model, case.inputs()))
        scores = prunella.score(model, groups, name)
        assert scores.criterion == name
        assert {group.name: (group.channels,) for group in groups} == {
            group: values.shape for group, values in scores.values.items()
        }
        again = prunella.score(model, groups, name)
        for group in groups:
            np.testing.assert_array_equal(again.values[group.name], scores.values[group.name])
        assert oracle.unchanged(model, before)


def test_magnitude_is_the_norm_of_what_the_channel_has() -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]])
    for p, norms in ((2, [5.0, 1.0, 10.0]), (1, [7.0, 1.0, 14.0])):
        found = Magnitude(p)([weight])
        torch.testing.assert_close(found / found[0], torch.tensor(norms) / norms[0])


def test_no_axis_drowns_another() -> None:
    narrow, wide = torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0] * 100, [1.0] * 100])
    found = Magnitude(1)([narrow, wide])
    torch.testing.assert_close(found[0], found[1])


def test_magnitude_of_another_order() -> None:
    with pytest.raises(prunella.PrunellaError, match="norm is 1 or 2, got p=3"):
        Magnitude(3)


def test_random_depends_on_the_seed() -> None:
    assert not torch.equal(Random(0)(SLICES), Random(1)(SLICES))


@pytest.mark.parametrize("criterion", [lambda slices: slices[0].abs().amax(1)])
def test_a_function_of_the_users_is_a_criterion(
    criterion: Callable[[list[Tensor]], Tensor],
) -> None:
    case = ZOO["chain"]
    result = prunella.prune(case.model(), case.inputs(), ratio=0.5, criterion=criterion)
    oracle.check_pruned(case.model(), result.plan, result.model, case.inputs(), {})
