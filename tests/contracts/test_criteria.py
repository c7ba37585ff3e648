"""What every importance criterion owes: a suite that each member of the catalogue passes."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunella
from prunella import CRITERIA
from prunella.criteria import Fpgm, Lamp, Magnitude, Member, NormScale, Random, Reading
from prunella.plan import Axis
from prunella.roles import Role, roles_of
from tests import oracle
from tests.models import ZOO, conv_norm

BLIND = {"random"}
"""Criteria that do not look at the network."""


def member(weight: Tensor, role: Role = "makes", name: str = "w") -> Member:
    return Member(Axis(name, 0), role, weight.float())


MEMBERS = [
    member(torch.tensor([[4.0, 1], [2, 3], [0, 8], [7, 5]])),
    member(torch.tensor([[1.0], [2], [0.5], [3]]), "scales"),
    member(torch.tensor([[9.0, 4, 2], [5, 3, 1], [2, 8, 8], [6, 6, 6]]), "reads"),
]


@pytest.mark.parametrize("name", sorted(CRITERIA))
class TestCriterion:
    """One suite, every criterion."""

    def test_one_finite_float_per_channel(self, name: str) -> None:
        for count in (1, 2, 7):
            found = CRITERIA[name]([member(torch.randn(count, 3)), member(torch.randn(count, 1))])
            assert found.shape == (count,)
            assert found.isfinite().all()
            assert found.is_floating_point()

    def test_the_same_members_score_the_same_and_are_not_changed(self, name: str) -> None:
        before = [each.weight.clone() for each in MEMBERS]
        assert torch.equal(CRITERIA[name](MEMBERS), CRITERIA[name](MEMBERS))
        assert all(torch.equal(a, b.weight) for a, b in zip(before, MEMBERS, strict=True))

    def test_zero_tensors_score_finite(self, name: str) -> None:
        found = CRITERIA[name]([member(torch.zeros(5, 3)), member(torch.zeros(5, 2), "reads")])
        assert found.isfinite().all()

    def test_permuting_channels_permutes_scores(self, name: str) -> None:
        if name in BLIND:
            pytest.skip("does not look at the weights")
        order = torch.tensor([2, 0, 3, 1])
        moved = [member(each.weight[order], each.role) for each in MEMBERS]
        torch.testing.assert_close(CRITERIA[name](moved), CRITERIA[name](MEMBERS)[order])

    @pytest.mark.parametrize("role", ["makes", "reads", "scales", "shifts"])
    def test_a_group_with_one_kind_of_member(self, name: str, role: Role) -> None:
        found = CRITERIA[name]([member(torch.rand(4, 1), role)])
        assert found.shape == (4,)
        assert found.isfinite().all()

    @pytest.mark.parametrize("model_name", ["chain", "residual", "concat", "gate", "depthwise"])
    def test_higher_means_keep(self, name: str, model_name: str) -> None:
        if name in BLIND:
            pytest.skip("does not look at the weights")
        case = ZOO[model_name]
        model = case.model(dtype=torch.float32)
        inputs = case.inputs(dtype=torch.float32)
        groups = prunella.couple(prunella.trace(model, inputs))
        # One channel of each group hardly does anything.
        useless = {group.name: group.channels // 2 for group in groups}
        tensors = dict(model.named_parameters())
        with torch.no_grad():
            for group in groups:
                for axis, positions in group.axes.items():
                    if axis.tensor in tensors and groups.axes[axis].ndim == 1:
                        for position in positions[useless[group.name]]:
                            tensors[axis.tensor].select(axis.dim, int(position)).mul_(1e-3)
        scores = prunella.score(model, groups, name)
        assert {group: int(found.argmin()) for group, found in scores.values.items()} == useless

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_weights_of_any_precision(self, name: str, dtype: torch.dtype) -> None:
        case = ZOO["chain"]
        groups = prunella.couple(prunella.trace(case.model(), case.inputs()))
        scores = prunella.score(case.model(dtype=dtype), groups, name)
        assert all(np.isfinite(found).all() for found in scores.values.values())

    @pytest.mark.parametrize(
        "model_name",
        ["grouped_conv", "flatten", "tied_weights", "shuffle", "bare_parameter", "transposed"],
    )
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


# What each of them computes


def test_magnitude_is_the_norm_of_what_the_channel_has() -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]])
    for p, norms in ((2, [5.0, 1.0, 10.0]), (1, [7.0, 1.0, 14.0])):
        found = Magnitude(p)([member(weight)])
        torch.testing.assert_close(found / found[0], torch.tensor(norms) / norms[0])


def test_no_axis_drowns_another() -> None:
    narrow = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    wide = torch.tensor([[2.0] * 100, [1.0] * 100])
    found = Magnitude(1)([member(narrow), member(wide, "reads")])
    torch.testing.assert_close(found[0], found[1])


def test_a_bias_does_not_weigh_as_much_as_a_convolution() -> None:
    weight, bias = torch.tensor([[3.0, 4.0], [2.0, 1.0]]), torch.tensor([[0.0], [100.0]])
    members = [member(weight), member(bias, "shifts")]
    torch.testing.assert_close(Magnitude(2)(members), Magnitude(2)(members[:1]))
    assert Magnitude(2)(members[1:]).argmax() == 1


def test_magnitude_of_another_order() -> None:
    with pytest.raises(prunella.PrunellaError, match="norm is 1 or 2, got p=3"):
        Magnitude(3)


def test_reading_is_the_norm_of_what_consumers_multiply_a_channel_with() -> None:
    made = member(torch.tensor([[100.0, 1.0], [1.0, 1.0]]))
    first, second = torch.tensor([[3.0], [0.0]]), torch.tensor([[0.0, 4.0], [6.0, 8.0]])
    found = Reading()([made, member(first, "reads"), member(second, "reads")])
    torch.testing.assert_close(found, torch.tensor([5.0, 10.0]))
    assert Reading()([made]).argmax() == 0  # nothing reads it


def test_norm_scale_looks_at_factors_alone() -> None:
    scale = member(torch.tensor([[-2.0], [0.5], [1.0]]), "scales")
    members = [member(torch.rand(3, 9)), scale, member(torch.rand(3, 1), "shifts")]
    found = NormScale()(members)
    torch.testing.assert_close(found / found[2], torch.tensor([2.0, 0.5, 1.0]))


def test_lamp_divides_by_what_is_at_least_as_large() -> None:
    found = Lamp()([member(torch.tensor([[3.0], [1.0], [2.0]]))])
    torch.testing.assert_close(found, torch.tensor([9 / 9, 1 / 14, 4 / 13]))


def test_fpgm_finds_the_filter_that_others_can_replace() -> None:
    weight = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.1, 2.0], [9.0, 9.0]])
    found = Fpgm()([member(weight)])
    wanted = torch.stack([(weight - row).norm(dim=1).sum() for row in weight])
    torch.testing.assert_close(found / found[0], wanted / wanted[0])
    assert found.argmin() == 1  # a large filter, but in the middle; the zero filter is not


def test_random_depends_on_the_seed() -> None:
    assert not torch.equal(Random(0)(MEMBERS), Random(1)(MEMBERS))


# What a network does along an axis


def roles(model: nn.Module, *inputs: Tensor) -> dict[tuple[str, int], Role]:
    found = roles_of(prunella.trace(model, inputs))
    return {(axis.tensor, axis.dim): role for axis, role in found.items()}


def test_roles_of_a_convolution_and_its_norm() -> None:
    found = roles(nn.Sequential(conv_norm(3, 8)).eval(), torch.randn(2, 3, 8, 8))
    assert found["0.0.weight", 0] == "makes"
    assert found["0.0.weight", 1] == "reads"
    assert found["0.1.weight", 0] == "scales"
    assert found["0.1.bias", 0] == "shifts"


def test_roles_of_a_transposed_convolution() -> None:
    found = roles(nn.ConvTranspose2d(3, 8, 2), torch.randn(2, 3, 8, 8))
    assert found["weight", 0] == "reads"
    assert found["weight", 1] == "makes"
    assert found["bias", 0] == "shifts"


class Functional(nn.Module):
    """Weights that are used in many ways, on either side of a product."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.place = nn.Parameter(torch.randn(1, 5, 4))
        self.right, self.left = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(7, 5))
        self.spelled, self.gain = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(1, 2))
        self.cell = nn.LSTM(2, 3, batch_first=True)

    def forward(self, index: Tensor) -> Tensor:
        x = self.left @ ((self.table(index) + self.place) @ self.right)
        x = torch.einsum("nti,oi->nto", x, self.spelled) * self.gain
        return self.cell(x)[0]


def test_roles_where_no_module_tells() -> None:
    found = roles(Functional(), torch.zeros(2, 5, dtype=torch.long))
    assert found["table.weight", 1] == "makes"
    assert found["place", 2] == "shifts"
    assert (found["right", 0], found["right", 1]) == ("reads", "makes")
    assert (found["left", 0], found["left", 1]) == ("makes", "reads")
    assert (found["spelled", 0], found["spelled", 1]) == ("makes", "reads")
    assert found["gain", 1] == "scales"
    assert (found["cell.weight_ih_l0", 0], found["cell.weight_ih_l0", 1]) == ("makes", "reads")
    assert found["cell.bias_hh_l0", 0] == "shifts"


def test_tied_weights_are_read_where_any_use_reads() -> None:
    case = ZOO["tied_weights"]
    found = roles(case.model(), *case.inputs())
    assert (found["encode.weight", 0], found["encode.weight", 1]) == ("reads", "reads")


# Users' own


def widest(members: Sequence[Member]) -> Tensor:
    return torch.stack([each.weight.abs().amax(1) for each in members]).amax(0)


def test_a_function_of_the_users_is_a_criterion() -> None:
    case = ZOO["chain"]
    result = prunella.prune(case.model(), case.inputs(), ratio=0.5, criterion=widest)
    oracle.check_pruned(case.model(), result.plan, result.model, case.inputs(), {})
    groups = prunella.couple(prunella.trace(case.model(), case.inputs()))
    assert prunella.score(case.model(), groups, widest).criterion == "widest"
