"""The certificate finds what is wrong, and leaves nothing behind."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

import prunella
from prunella.certifying import compare
from prunella.errors import CertificateError, ConfigError
from prunella.plan import Groups

IMAGE = torch.randn(2, 3, 8, 8)
TOKENS = torch.randn(2, 7, 6)


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Sigmoid(), nn.Conv2d(8, 4, 3)
    ).eval()


def test_a_wrong_value_of_the_pruned_model_is_found() -> None:
    model = net()
    result = prunella.prune(model, IMAGE, ratio=0.5)
    assert prunella.certify(model, result.model, result.plan, (IMAGE,)).error < 1e-12
    with torch.no_grad():
        result.model[3].weight[0, 0, 0, 0] += 1
    with pytest.raises(CertificateError, match="differs from the masked one"):
        prunella.certify(model, result.model, result.plan, (IMAGE,))


def test_the_callers_random_numbers_go_on_as_before() -> None:
    model = net()
    before = torch.get_rng_state()
    prunella.prune(model, IMAGE, ratio=0.5)
    assert torch.equal(torch.get_rng_state(), before)


class LlamaNorm(nn.Module):
    """As language models have it: in float32, whatever comes in."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


class Gate(nn.Module):
    """A softmax over channels, computed in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return x * F.softmax(x, -1, dtype=torch.float32)


class Share(nn.Module):
    """A mean over channels that is spelled out, of channels that are not zero where removed."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x) - torch.exp(x).sum(-1, keepdim=True) / x.shape[-1]


class Spatial(nn.Module):
    """Mean and maximum over channels say where to look."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        seen = [x.mean(1, keepdim=True), x.amax(1, keepdim=True)]
        return x * torch.sigmoid(self.look(torch.cat(seen, 1)))


class ChannelsLast(nn.LayerNorm):
    """A layer norm over the channels of images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def over_tokens(middle: nn.Module) -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(6, 16), nn.Sigmoid(), middle, nn.Linear(16, 5)).eval(), TOKENS


def over_images(middle: nn.Module) -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.Sigmoid(), middle, nn.Conv2d(16, 4, 3)), IMAGE


NORMS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "layer norm": lambda: over_tokens(nn.LayerNorm(16)),
    "layer norm without weights": lambda: over_tokens(nn.LayerNorm(16, elementwise_affine=False)),
    "layer norm of images": lambda: over_images(ChannelsLast(16)),
    "RMS norm": lambda: over_tokens(nn.RMSNorm(16)),
    "group norm": lambda: over_images(nn.GroupNorm(4, 16)),
}
OTHERS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "RMS norm in float32": lambda: over_tokens(LlamaNorm(16)),
    "softmax over channels": lambda: over_tokens(Gate()),
    "sum divided by a size": lambda: over_tokens(Share()),
    "mean and maximum over channels": lambda: over_images(Spatial()),
}


def pruned(model: nn.Module, x: Tensor) -> tuple[prunella.PruneResult, Groups]:
    result = prunella.prune(model, x, ratio=0.5)
    groups = prunella.couple(prunella.trace(model, x), form=result.plan.form)
    assert groups.marked
    assert result.plan.after.macs <= 0.6 * result.plan.before.macs
    return result, groups


@pytest.mark.parametrize("name", {**NORMS, **OTHERS})
def test_statistics_are_taken_over_what_is_kept(name: str) -> None:
    model, x = {**NORMS, **OTHERS}[name]()
    result, groups = pruned(model, x)
    found = compare(model, result.model, result.plan, (x,), groups=groups)
    assert found.holds
    assert found.error < 1e-13
    assert (found.dtype, found.runs) == ("float64", 2)
    zeros = compare(model, result.model, replace(result.plan, marked=False), (x,))
    assert zeros.error > 1e-4, "zeros are not the same as nothing here, or the test shows nothing"
    with torch.no_grad():
        result.model[0].weight[0, 0] += 1e-3
    assert not compare(model, result.model, result.plan, (x,), groups=groups).holds
    with pytest.raises(CertificateError, match="differs from the masked one"):
        prunella.certify(model, result.model, result.plan, (x,))


@pytest.mark.parametrize("name", NORMS)
def test_norm_modules_do_so_in_a_model_that_cannot_be_replayed(name: str) -> None:
    model, x = NORMS[name]()
    result, groups = pruned(model, x)
    recorded = replace(groups, graph=replace(groups.graph, recorded=True))
    assert compare(model, result.model, result.plan, (x,), groups=recorded).error < 1e-13
    assert "forward" not in vars(model[2])
    with torch.no_grad():
        result.model[0].weight[0, 0] += 1e-3
    assert not compare(model, result.model, result.plan, (x,), groups=recorded).holds


def test_other_statistics_of_such_a_model_are_refused_by_name() -> None:
    model, x = OTHERS["mean and maximum over channels"]()
    result, groups = pruned(model, x)
    recorded = replace(groups, graph=replace(groups.graph, recorded=True))
    with pytest.raises(CertificateError, match=r"`aten.mean.dim` in `2` takes statistics"):
        compare(model, result.model, result.plan, (x,), groups=recorded)


class Switch(nn.Module):
    """Computes something else once a switch is thrown, which a captured graph cannot know."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.on = inner, True

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if self.on else x.exp() * self.inner(x)


@pytest.mark.parametrize("norm", [True, False])
def test_a_graph_that_does_not_compute_what_the_model_computes_is_not_trusted(norm: bool) -> None:
    model, x = over_tokens(Switch(nn.LayerNorm(16) if norm else Share()))
    result, groups = pruned(model, x)
    model[2].on = result.model[2].on = False
    if norm:  # the model's own norm modules can do without the graph
        assert compare(model, result.model, result.plan, (x,), groups=groups).error < 1e-13
    else:
        with pytest.raises(CertificateError, match="does not compute what the model computes"):
            compare(model, result.model, result.plan, (x,), groups=groups)


def test_groups_found_on_other_shapes_are_found_again() -> None:
    model, x = NORMS["layer norm"]()
    result, groups = pruned(model, x)
    assert compare(model, result.model, result.plan, (x[:1, :3],), groups=groups).error < 1e-13


class Kinds(nn.Module):
    """Outputs of several kinds, each of which can be falsified."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.wrong = nn.Linear(6, 16), nn.Linear(16, 5), ""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.b(torch.sigmoid(self.a(x)))
        masked = x.masked_fill(torch.eye(7, 5, dtype=torch.bool), torch.finfo(x.dtype).min)
        made = {"masked": masked, "best": x.argmax(-1), "turned": torch.complex(x, -x)}
        made |= {"log": (0 * x).log(), "nothing": x[:0], "undefined": (x - 1e9).sqrt()}
        if self.wrong:
            made[self.wrong] = made[self.wrong] + 1e-4
        return {name: t.long() if name == "best" else t for name, t in made.items()}


def test_outputs_of_every_kind_are_compared() -> None:
    model = Kinds().eval()
    result = prunella.prune(model, TOKENS, ratio=0.5)
    assert result.certificate.error < 1e-13
    for wrong in ("masked", "turned"):
        result.model.wrong = wrong
        assert compare(model, result.model, result.plan, (TOKENS,)).error > 1e-6
    result.model.wrong = ""
    with torch.no_grad():
        result.model.b.bias += torch.arange(5.0)
    assert compare(model, result.model, result.plan, (TOKENS,)).error == float("inf")


def test_the_model_and_what_was_given_are_left_as_they_were() -> None:
    model, x = OTHERS["RMS norm in float32"]()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept, random = x.clone(), torch.get_rng_state()
    pruned(model, x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), random)


class Faint(nn.Module):
    """A branch whose scale is so small that what it computes hardly reaches the output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 6)
        self.scale = nn.Parameter(torch.full((6,), 1e-12))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.b(torch.sigmoid(self.a(x)))


class Dying(nn.Module):
    """Layers of which each passes on a tenth of its signal, as some libraries start them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3)
        self.layers = nn.Sequential()
        for _ in range(16):
            self.layers.append(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False))
            self.layers.append(nn.BatchNorm2d(8))
            nn.init.normal_(self.layers[-2].weight, std=0.03)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.b(torch.sigmoid(self.a(x)))))


@pytest.mark.parametrize(("make", "x"), [(Faint, TOKENS), (Dying, IMAGE)])
def test_a_wrong_plan_is_found_where_hardly_a_signal_comes_through(
    make: Callable[[], nn.Module], x: Tensor
) -> None:
    model = make().eval()
    result = prunella.prune(model, x, ratio=0.5)
    kept = {name: dict(dims) for name, dims in result.plan.kept.items()}
    kept["b.weight"][1] = tuple(sorted(set(range(16)) - {*kept["b.weight"][1]}))  # the others
    wrong = replace(result.plan, kept=kept)
    smaller = prunella.transform(model, wrong, certify=False)
    unseen = compare(model, smaller, replace(wrong, example=None), (x,))
    assert unseen.holds, "the given weights show it, so the test shows nothing"
    assert compare(model, smaller, wrong, (x,)).error > 1e-4


class Lengths(nn.Module):
    """Takes no lengths but such as add up."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        if lengths.sum() != len(x):
            raise ValueError("lengths do not add up")
        return self.b(self.a(x).relu()) * lengths.repeat_interleave(lengths)[:, None]


def test_inputs_that_are_not_just_any_numbers_stay_as_given() -> None:
    given = torch.randn(9, 6), torch.tensor([2, 3, 4])
    assert prunella.prune(Lengths().eval(), given, ratio=0.5).certificate.runs == 2


def test_norms_written_by_hand_let_a_signal_through_when_perturbed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), FrozenBatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3),
        nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3),
    ).eval()  # fmt: skip
    # Repair has put zeros where channels go, also into the variances.
    result = prunella.prune(model, IMAGE, ratio=0.5, calibration=[IMAGE])
    assert result.certificate.runs == 2


class Doubling(nn.Module):
    """Doubles every difference in each step, on the way to chaos; with no steps it is calm."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.a, self.b, self.steps = nn.Linear(6, 600), nn.Linear(600, 5), steps

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.b(torch.tanh(self.a(x))))
        for _ in range(self.steps):
            x = 4 * x * (1 - x)
        return x


def test_a_model_that_makes_much_of_rounding_is_allowed_what_it_makes_of_it() -> None:
    wild, calm = Doubling(23).double().eval(), Doubling(0).double().eval()
    calm.load_state_dict(wild.state_dict())
    x = TOKENS.double()
    proof = prunella.prune(wild, x, ratio=0.5).certificate
    assert proof.holds
    assert 1e-9 < proof.error <= proof.tolerance <= 1e-6, "no rounding, so the test shows nothing"

    result = prunella.prune(calm, x, ratio=0.5)
    assert result.certificate.error < 1e-13
    with torch.no_grad():  # a mistake that is as small, in a model that explains none
        result.model.b.bias += 10 * proof.error
    found = compare(calm, result.model, result.plan, (x,))
    assert 1e-9 < found.error < 1e-6
    assert (found.holds, found.tolerance) == (False, 1e-9)


def test_a_mistake_in_such_a_model_is_found() -> None:
    wild, x = Doubling(23).double().eval(), TOKENS.double()
    result = prunella.prune(wild, x, ratio=0.5)
    with torch.no_grad():
        result.model.b.weight[0, 0] += 1e-6
    found = compare(wild, result.model, result.plan, (x,))
    assert not found.holds
    assert found.tolerance <= 1e-6


class Logarithm(nn.Module):
    """Is defined for positive inputs alone; masks what lies ahead with infinity."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        ahead = torch.full((8, 8), -math.inf).triu(1)
        return ahead + self.two(F.relu(self.one(x.log())))[:, None]


@pytest.mark.parametrize("bad", ["inputs", "weights"])
def test_numbers_that_are_none_prove_nothing(bad: str) -> None:
    torch.manual_seed(0)
    model, inputs = Logarithm(), torch.rand(3, 8) + 0.1
    if bad == "inputs":
        inputs = -inputs
    else:
        model.two.bias.data[:] = math.nan
    with pytest.raises(ConfigError, match=r"dense model itself .*mostly NaN .*Give `example_inp"):
        prunella.prune(model, inputs, ratio=0.5)


class Dividing(nn.Module):
    """Divides by a sum to which one channel alone contributes."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 4), nn.Linear(8, 2)
        self.one.weight.data.abs_()
        self.one.bias.data.copy_(torch.tensor([1.0, -100.0, -100.0, -100.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.two(x) / F.relu(self.one(x)).sum(1, keepdim=True)


def test_a_cut_that_leaves_no_number_is_refused() -> None:
    torch.manual_seed(0)
    model, inputs = Dividing(), torch.rand(3, 8)
    groups = prunella.couple(prunella.trace(model, inputs))
    scores = prunella.Scores("mine", {"one": np.arange(4.0)})
    plan = prunella.allocate(groups, scores, 0.5)
    with pytest.raises(CertificateError, match="the dense model's is not: something divides by"):
        prunella.transform(model, plan, inputs)


def test_numbers_that_are_none_here_and_there_may_be() -> None:
    torch.manual_seed(0)
    model, inputs = Logarithm(), torch.rand(3, 8) + 0.1
    inputs[0, 0] = -1  # nothing is known of one sample
    result = prunella.prune(model, inputs, ratio=0.5)
    assert result.certificate.holds
    assert result.certificate.runs == 1  # the logarithm of random inputs says nothing
    result.model.two.bias.data[0] += 0.1
    with pytest.raises(CertificateError, match="differs"):
        prunella.certify(model, result.model, result.plan, (inputs,))


class ActNorm(nn.Module):
    """As in Glow: divides by a scale of its own for every channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x / self.scale


def test_what_is_removed_may_be_divided_by() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), ActNorm(8), nn.Sigmoid(), nn.Conv2d(8, 4, 3))
    result = prunella.prune(model, IMAGE, ratio=0.5)
    assert [len(kept) for kept in result.plan.channels.values()] == [4]
    assert not result.plan.marked
    assert result.certificate.error < 1e-12
    assert result.certificate.runs == 2
    with torch.no_grad():
        result.model[1].scale[0] += 0.1
    with pytest.raises(CertificateError, match="differs from the masked one"):
        prunella.certify(model, result.model, result.plan, (IMAGE,))
