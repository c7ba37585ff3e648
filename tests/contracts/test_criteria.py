"""What every importance criterion owes: a suite that each member of the catalogue passes."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunella
from prunella import CRITERIA
from prunella.calibration import Calibration
from prunella.plan import Axis, Groups
from prunella.scoring.criteria import (
    Activation,
    Fisher,
    Fpgm,
    Lamp,
    Magnitude,
    Member,
    NormScale,
    Random,
    Reading,
    Wanda,
)
from prunella.scoring.roles import Role, roles_of
from tests import oracle
from tests.models import ZOO, Case, conv_norm

BLIND = {"random"}
"""Criteria that do not look at the network."""


def member(weight: Tensor, role: Role = "makes", order: Tensor | None = None) -> Member:
    """Make a member, with what calibration would have shown; the same for the same weight."""
    generator = torch.Generator().manual_seed(weight.numel())
    order = torch.arange(len(weight)) if order is None else order
    gates = torch.randn(6, len(weight), generator=generator)[:, order]
    inputs = torch.rand(weight.shape, generator=generator)[order]
    read = inputs if role == "reads" else None
    return Member(Axis("w", 0), role, weight.float(), gates, read)


@cache
def grouped(name: str) -> Groups:
    case = ZOO[name]
    return prunella.couple(prunella.trace(case.model(), case.inputs()))


def data(case: Case, batches: int = 3, dtype: torch.dtype = torch.float64) -> Calibration:
    seeds = range(batches)
    return Calibration([(case.inputs(seed, dtype), case.keywords(seed, dtype)) for seed in seeds])


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
        moved = [member(each.weight[order], each.role, order) for each in MEMBERS]
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
        if (name, model_name) == ("activation", "concat"):
            pytest.skip("behind a sigmoid a channel of zeros is one half")
        case = ZOO[model_name]
        model, groups = case.model(dtype=torch.float32), grouped(model_name)
        # One channel of each group hardly does anything.
        useless = {group.name: group.channels // 2 for group in groups}
        tensors = dict(model.named_parameters())
        with torch.no_grad():
            for group in groups:
                for axis, positions in group.axes.items():
                    if axis.tensor in tensors and groups.axes[axis].ndim == 1:
                        for position in positions[useless[group.name]]:
                            tensors[axis.tensor].select(axis.dim, int(position)).mul_(1e-3)
        scores = prunella.score(model, groups, name, data(case, 3, torch.float32))
        for group, channel in useless.items():
            found = scores.values[group]  # another may be as useless: one that is never on
            assert found[channel] <= found.min() + 1e-2 * found.mean()

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_weights_of_any_precision(self, name: str, dtype: torch.dtype) -> None:
        case, groups = ZOO["chain"], grouped("chain")
        scores = prunella.score(case.model(dtype=dtype), groups, name, data(case, 2, dtype))
        assert all(np.isfinite(found).all() for found in scores.values.values())

    @pytest.mark.parametrize(
        "model_name",
        ["grouped_conv", "flatten", "tied_weights", "shuffle", "bare_parameter", "transposed"],
    )
    def test_every_group_of_a_model_is_scored(self, name: str, model_name: str) -> None:
        case = ZOO[model_name]
        model, groups = case.model(), grouped(model_name)
        before = oracle.state(model)
        drawn = torch.random.get_rng_state()
        scores = prunella.score(model, groups, name, data(case))
        assert torch.equal(torch.random.get_rng_state(), drawn)
        assert all(tensor.grad is None for tensor in model.parameters())
        assert scores.criterion == name
        assert {group.name: (group.channels,) for group in groups} == {
            group: values.shape for group, values in scores.values.items()
        }
        again = prunella.score(model, groups, name, data(case))
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


# Gradients: against really closing gates


def small(role_of_bias: float = 0.3) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    net[0].bias.data += role_of_bias
    return net.double()


def groups_of(model: nn.Module, *inputs: Tensor) -> Groups:
    return prunella.couple(prunella.trace(model, inputs))


def closed(model: nn.Sequential, reader: int, channel: int, x: Tensor, gate: float) -> Tensor:
    """Compute the outputs with a channel times a gate, where it is read."""
    for i, module in enumerate(model):
        if i == reader:
            x = x.clone()
            x[:, channel] *= gate
        x = module(x)
    return x


@pytest.mark.parametrize(("name", "power"), [("taylor", 1), ("fisher", 2)])
def test_with_labels_it_is_the_slope_of_the_loss_as_the_gate_closes(name: str, power: int) -> None:
    model, x = small(), torch.randn(8, 5, dtype=torch.float64)
    labels = torch.randint(0, 3, (8,))

    def loss(outputs: Tensor, index: int) -> Tensor:
        return nn.functional.cross_entropy(outputs, labels[index : index + 1])

    batches = [((x[i : i + 1],), {}) for i in range(8)]  # every sample a pass
    scores = prunella.score(model, groups_of(model, x), name, Calibration(batches, loss))
    step = 1e-5
    for group, reader in (("0", 2), ("2", 4)):
        slopes = [
            [
                (
                    loss(closed(model, reader, channel, x[i : i + 1], 1 + step), i)
                    - loss(closed(model, reader, channel, x[i : i + 1], 1 - step), i)
                ).item()
                / (2 * step)
                for i in range(8)
            ]
            for channel in range(model[reader].in_features)
        ]
        wanted = (np.abs(slopes) ** power).mean(1)
        np.testing.assert_allclose(scores.values[group], wanted, rtol=1e-4, atol=1e-7)


def test_taylor_is_the_change_of_a_linear_loss_when_a_channel_is_really_zeroed() -> None:
    model, x = small(), torch.randn(4, 5, dtype=torch.float64)
    batches = [((x[i : i + 1],), {}) for i in range(4)]
    scores = prunella.score(
        model, groups_of(model, x), "taylor", Calibration(batches, lambda out, _: out[:, 0].sum())
    )
    moved = [(closed(model, 4, c, x, 0) - model(x))[:, 0].abs().mean().item() for c in range(4)]
    np.testing.assert_allclose(scores.values["2"], moved, rtol=1e-5)


def test_without_labels_fisher_is_how_far_the_outputs_move() -> None:
    model, x = small(), torch.randn(512, 5, dtype=torch.float64)
    scores = prunella.score(model, groups_of(model, x), "fisher", Calibration([((x,), {})] * 16))
    # What reads the channels of "2" is linear, so that the second order is all there is.
    moved = [(closed(model, 4, c, x, 0) - model(x)).square().sum().item() for c in range(4)]
    found = scores.values["2"] / scores.values["2"].sum()
    np.testing.assert_allclose(found, np.array(moved) / sum(moved), rtol=0.35)


def test_every_output_has_equal_weight() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 4), nn.Linear(2, 3), nn.Linear(2, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            x = self.a(x)
            return {"small": self.b(x[:, :2]), "large": 1e4 * self.c(x[:, 2:])}

    model, x = Two(), torch.randn(256, 5)
    found = prunella.score(model, groups_of(model, x), "fisher", Calibration([((x,), {})]))
    values = np.concatenate(list(found.values.values()))
    assert values.max() / values.min() < 1e3


def test_a_large_batch_is_taken_apart_into_passes() -> None:
    seen: list[int] = []
    model, x = small(), torch.randn(200, 5, dtype=torch.float64)
    groups = groups_of(model, x[:2])
    model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    prunella.score(model, groups, "fisher", Calibration([((x,), {})]))
    assert sum(seen) == 400  # once whole, for the spread; then in passes


def test_a_group_that_no_weight_reads_is_gated_where_it_is_made() -> None:
    gates = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    members = [Member(Axis("w", 0), "makes", torch.ones(2, 3), gates) for _ in range(2)]
    torch.testing.assert_close(Fisher()(members), torch.tensor([(4 + 36) / 2, (16 + 64) / 2]))


def test_what_is_made_does_not_count_where_it_is_read() -> None:
    read = Member(Axis("w", 1), "reads", torch.ones(2, 3), torch.tensor([[1.0, 2.0]]))
    made = Member(Axis("v", 0), "makes", torch.ones(2, 3), torch.tensor([[7.0, 0.0]]))
    torch.testing.assert_close(Fisher()([made, read]), torch.tensor([1.0, 4.0]))


class Silent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = small()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.net(x)


@pytest.mark.parametrize("labels", [True, False])
def test_a_model_that_computes_without_gradients(labels: bool) -> None:
    model, x = Silent(), torch.randn(2, 5, dtype=torch.float64)
    loss = (lambda outputs, index: outputs.sum()) if labels else None
    with pytest.raises(prunella.PrunellaError, match=r"`Silent` .*no_grad.* needs no gradients"):
        prunella.score(model, groups_of(model, x), "fisher", Calibration([((x,), {})], loss))


def test_weights_that_are_not_trained_get_gates_all_the_same() -> None:
    case, groups = ZOO["no_gradient"], grouped("no_gradient")
    model = case.model()
    found = prunella.score(model, groups, "fisher", data(case))
    assert all(values.max() > 0 for values in found.values.values())
    assert not any(tensor.requires_grad for tensor in model.parameters())


def test_gradients_inside_inference_mode() -> None:
    case, groups = ZOO["chain"], grouped("chain")
    model = case.model()
    wanted = prunella.score(model, groups, "fisher", data(case))
    batches = data(case)
    with torch.inference_mode():
        found = prunella.score(model, groups, "fisher", batches)
    for name, values in wanted.values.items():
        np.testing.assert_array_equal(values, found.values[name])


@pytest.mark.parametrize("kind", ["calibration", "batches"])
@pytest.mark.parametrize("criterion", ["fisher", "taylor"])
def test_gradients_of_data_made_in_inference_mode(criterion: str, kind: str) -> None:
    model, x = small(), torch.randn(8, 5, dtype=torch.float64)
    with torch.inference_mode():
        same = x.clone()

    def given(x: Tensor) -> prunella.Calibration | list[Tensor]:
        return Calibration([((x,), {})], labelled) if kind == "calibration" else [x]

    def labelled(outputs: Tensor, index: int) -> Tensor:
        return outputs.square().mean()

    wanted = prunella.score(model, groups_of(model, x), criterion, given(x))
    found = prunella.score(model, groups_of(model, x), criterion, given(same))
    np.testing.assert_array_equal(found.values["0"], wanted.values["0"])


def test_what_has_no_gradient_because_of_inference_mode_is_named() -> None:
    model, x = small(), torch.randn(8, 5, dtype=torch.float64)
    groups = groups_of(model, x)
    with torch.inference_mode():
        labels, frozen = torch.zeros(8, dtype=torch.int64), small()
    loss = Calibration(
        [((x,), {})], lambda outputs, _: nn.functional.cross_entropy(outputs, labels)
    )
    with pytest.raises(prunella.PrunellaError, match=r"batch 0 .*made under torch.inference_mode"):
        prunella.score(model, groups, "fisher", loss)
    with pytest.raises(prunella.PrunellaError, match=r"weights of .* under torch.inference_mode"):
        prunella.score(frozen, groups, "fisher", [x])


# Activations: whoever multiplies


def test_wanda_is_the_norm_of_weights_times_inputs() -> None:
    model, x = small(), torch.randn(64, 5, dtype=torch.float64)
    batches = [((x[:40],), {}), ((x[40:],), {})]
    scores = prunella.score(model, groups_of(model, x), "wanda", Calibration(batches))
    hidden = model[1](model[0](x)).square().mean(0).sqrt()
    wanted = model[2].weight.norm(dim=0) * hidden
    np.testing.assert_allclose(scores.values["0"], wanted.detach().numpy(), rtol=1e-5)


def test_activation_does_not_look_at_weights() -> None:
    inputs = torch.tensor([[1.0, 4.0], [9.0, 9.0]])
    members = [Member(Axis("w", 1), "reads", torch.rand(2, 2), None, inputs)]
    found = Activation()(members)
    torch.testing.assert_close(found / found[1], torch.tensor([2.5**0.5 / 3, 1.0]))


def test_what_functions_read_is_heard_as_well() -> None:
    case, groups = ZOO["bare_parameter"], grouped("bare_parameter")
    model = case.model()
    scores = prunella.score(model, groups, "wanda", data(case, 1))
    x = nn.functional.relu(nn.functional.conv2d(*case.inputs(), model.w1, padding=1))
    rms = x.square().mean((0, 2, 3)).sqrt()
    wanted = rms * model.w2.transpose(0, 1).flatten(1).norm(dim=1)
    np.testing.assert_allclose(scores.values["w1"], wanted.detach().numpy(), rtol=1e-5)
    x = nn.functional.relu(nn.functional.conv2d(x, model.w2, model.b2, stride=2)).mean((2, 3))
    wanted = x.square().mean(0).sqrt() * model.w3.norm(dim=1)
    np.testing.assert_allclose(scores.values["w2"], wanted.detach().numpy(), rtol=1e-5)


def test_every_conv_group_hears_its_own_channels() -> None:
    case, groups = ZOO["grouped_conv"], grouped("grouped_conv")
    model = case.model()
    scores = prunella.score(model, groups, "wanda", data(case, 1))
    inner = next(g for g in groups if Axis("b.0.weight", 1) in g.axes and "a" in g.name)
    x = nn.functional.relu(model.stem(*case.inputs()))
    x = nn.functional.relu(model.a(x))
    rms = x.square().mean((0, 2, 3)).sqrt()
    weight = model.b[0].weight  # [12, 8 / 2, 3, 3]
    norms = torch.cat([part.transpose(0, 1).flatten(1).norm(dim=1) for part in weight.chunk(2)])
    found = np.concatenate([scores.values[g.name] for g in groups if "a." in g.name])
    np.testing.assert_allclose(np.sort(found), np.sort((rms * norms).detach().numpy()), rtol=1e-5)
    assert inner.channels > 0


def test_a_weight_in_another_precision_is_still_that_weight() -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small().float()

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.net(x)

    model, x = Cast(), torch.randn(64, 5)
    groups = groups_of(model, x)
    batches = Calibration([((x,), {})])
    found = prunella.score(model, groups, "wanda", batches).values["net.0"]
    wanted = prunella.score(model, groups, "reading").values["net.0"]
    hidden = model.net[1](model.net[0](x)).square().mean(0).sqrt().detach().numpy()
    np.testing.assert_allclose(found, wanted * hidden, rtol=0.02)


def test_what_is_not_seen_is_scored_by_its_weights() -> None:
    blind = [Member(Axis("w", 1), "reads", torch.tensor([[3.0], [1.0]]))]
    for criterion in (Wanda(), Activation(), Fisher(), CRITERIA["taylor"]):
        torch.testing.assert_close(criterion(blind), torch.tensor([3.0, 1.0]))


# Which criterion


@pytest.mark.parametrize("name", ["fisher", "taylor", "wanda", "activation"])
def test_a_criterion_that_needs_data_says_so(name: str) -> None:
    model, x = small(), torch.randn(2, 5, dtype=torch.float64)
    with pytest.raises(prunella.PrunellaError, match=f"{name}.*give `calibration`.*reading"):
        prunella.score(model, groups_of(model, x), name)


def test_without_a_name_the_data_decide() -> None:
    model, x = small(), torch.randn(2, 5, dtype=torch.float64)
    groups = groups_of(model, x)
    assert prunella.score(model, groups).criterion == "reading"
    for name in (None, "auto"):
        found = prunella.score(model, groups, name, Calibration([((x,), {})]))
        assert found.criterion == "fisher"


def test_data_may_be_a_list_of_batches() -> None:
    model, x = small(), torch.randn(4, 5, dtype=torch.float64)
    groups = groups_of(model, x)
    found = prunella.score(model, groups, "wanda", [(x, torch.zeros(4))])
    wanted = prunella.score(model, groups, "wanda", Calibration([((x,), {})]))
    np.testing.assert_array_equal(found.values["0"], wanted.values["0"])


def test_a_need_that_nobody_can_meet() -> None:
    def magic(members: Sequence[Member]) -> Tensor:
        return members[0].weight.sum(1)

    magic.needs = {"luck"}  # type: ignore[attr-defined]
    model, x = small(), torch.randn(2, 5, dtype=torch.float64)
    with pytest.raises(prunella.PrunellaError, match=r"'magic' needs \['luck'\]"):
        prunella.score(model, groups_of(model, x), magic)


def test_a_users_function_asks_for_gradients() -> None:
    def cautious(members: Sequence[Member]) -> Tensor:
        return torch.stack([m.gates.abs().amax(0) for m in members]).amax(0)

    cautious.needs = {"gradients"}  # type: ignore[attr-defined]
    model, x = small(), torch.randn(4, 5, dtype=torch.float64)
    found = prunella.score(model, groups_of(model, x), cautious, Calibration([((x,), {})]))
    assert found.criterion == "cautious"


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
