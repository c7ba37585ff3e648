"""Repair from unlabelled data: against plain least squares, and on networks with known answers."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunella
from prunella.calibration import Calibration, calibration, thinned
from prunella.errors import ConfigError, TraceError
from prunella.masking import mask
from prunella.model.structure import tensors
from prunella.repairing import marching
from prunella.repairing.compensating import compensate, least_squares
from prunella.repairing.divergence import divergence
from prunella.repairing.marching import courses, within
from prunella.repairing.mixing import input_of, mixers, rows_made, rows_read
from prunella.repairing.reconstructing import reconstruct
from prunella.replaying import bind, replay, run_node
from prunella.sensitivity.valuing import value


def images(count: int, seed: int = 0, channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


class Branches(nn.Module):
    """A residual network whose branches are all cut, with grouped and depthwise convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.first = nn.Sequential(
            nn.Conv2d(16, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
            nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.ReLU6(),
            nn.Conv2d(24, 16, 1, bias=False), nn.BatchNorm2d(16),
        )  # fmt: skip
        self.second = nn.Sequential(
            nn.Conv2d(16, 16, 3, stride=1, padding=2, dilation=2, groups=2), nn.SiLU(),
            nn.Conv2d(16, 16, 3, padding="same"), nn.BatchNorm2d(16),
        )  # fmt: skip
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.first(x))
        x = torch.relu(x + self.second(x))
        return self.head(x.mean((2, 3)))


class Tokens(nn.Module):
    """A transformer layer, with `x @ W` beside `nn.Linear`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.up = nn.Parameter(torch.randn(16, 32) / 4)
        self.down = nn.Linear(32, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + self.down(torch.relu(self.norm(x) @ self.up))
        return self.head(x.mean(1))


def trained(model: nn.Module) -> nn.Module:
    """Give norms statistics that are those of the data, and weights that are not alike."""
    torch.manual_seed(3)
    for parameter in model.parameters():
        parameter.data += 0.3 * parameter.std() * torch.randn_like(parameter)
    model.train()
    for seed in range(20):
        model(images(32, 100 + seed) if isinstance(model, Branches) else tokens(32, seed))
    return model.eval()


def tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 5, 6, generator=torch.Generator().manual_seed(seed))


NETWORKS = {"branches": (Branches, images), "tokens": (Tokens, tokens)}


@pytest.fixture(params=NETWORKS, scope="module")
def case(request: pytest.FixtureRequest):
    build, inputs = NETWORKS[request.param]
    torch.manual_seed(0)
    return trained(build()), inputs


def off(model: nn.Module, other: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - other(x)).square().mean())


def test_repair_brings_outputs_nearer_on_other_data(case):
    model, inputs = case
    groups = prunella.couple(prunella.trace(model, inputs(2)))
    plan = prunella.allocate(groups, prunella.score(model, groups, "random"), 0.5)
    repaired = compensate(model, plan, calibration([inputs(64, s) for s in range(4)]))
    fresh = inputs(128, 99)
    before = prunella.transform(model, plan)
    after = prunella.transform(repaired, plan)  # proven equal to the masked repaired model
    assert off(model, after, fresh) < 0.5 * off(model, before, fresh)


def test_what_others_compute_already_is_restored_exactly():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    with torch.no_grad():  # unit 5 is twice unit 0, unit 4 the same as unit 1
        for twin, of, factor in ((5, 0, 2.0), (4, 1, 1.0)):
            model[0].weight[twin] = factor * model[0].weight[of]
            model[0].bias[twin] = factor * model[0].bias[of]
    x = torch.randn(256, 4)
    result = prunella.prune(model, x[:2], ratio=1 / 3, calibration=[x])
    kept = set(result.plan.channels["0.weight"]) if "0.weight" in result.plan.channels else set()
    kept = kept or set(next(iter(result.plan.channels.values())))
    assert len(kept & {0, 5}) == 1
    assert len(kept & {1, 4}) == 1
    torch.testing.assert_close(result.model(x), model(x), atol=2e-3, rtol=2e-3)


def check_rows(mixer, named, x, made):
    """Compare the rows that a node reads, times its weight laid out, with the rows it makes."""
    weight = named[mixer.weight]
    product = rows_read(mixer, x, made, weight.shape[2:], None) @ mixer.matrix(weight).mT
    if mixer.bias is not None:
        product = product + named[mixer.bias].reshape(mixer.parts, 1, -1)
    torch.testing.assert_close(product, rows_made(mixer, made, None))
    torch.testing.assert_close(mixer.unmatrix(mixer.matrix(weight), weight.shape), weight)


def test_rows_times_weight_are_what_the_node_makes(case):
    model, inputs = case
    graph = prunella.trace(model, inputs(2))
    nodes = tuple(node for node in graph.nodes if not node.training)
    found = {mixer.index: mixer for mixer in mixers(graph, nodes)}
    named, seen = tensors(model), []

    def step(node, values):
        made = run_node(node, values)
        mixer = found.get(nodes.index(node))
        if mixer is not None:
            check_rows(mixer, named, values[input_of(node).name], made[0])
            seen.append(mixer.weight)
        return made

    with torch.no_grad():
        replay(graph, named, bind(graph, (inputs(2),), {}), step)
    assert len(seen) >= 5


def test_least_squares_is_that_of_numpy():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 7, generator=generator, dtype=torch.float64)
    y = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    found = least_squares((x.T @ x)[None], (x.T @ y)[None], torch.zeros(1, 3, 7).double(), 0.0)
    wanted, *_ = np.linalg.lstsq(x.numpy(), y.numpy(), rcond=None)
    np.testing.assert_allclose(found[0].numpy().T, wanted, atol=1e-8)


def test_order_is_that_of_trying_every_channel():
    # With one consumer the error after the first removal can be computed by refitting without it.
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).eval()
    x = torch.randn(512, 5)
    groups = prunella.couple(prunella.trace(model, x[:2]))
    (group,) = groups
    found = reconstruct(model, groups, prunella.score(model, groups), calibration([x]))
    hidden = model[:2](x).detach().double().numpy()
    made = hidden @ model[2].weight.detach().double().numpy().T
    centred, wanted = hidden - hidden.mean(0), made - made.mean(0)
    errors = []
    for channel in range(6):
        rest = np.delete(centred, channel, 1)
        fitted, *_ = np.linalg.lstsq(rest, wanted, rcond=None)
        errors.append(np.square(wanted - rest @ fitted).sum() / np.square(wanted).sum())
    assert int(np.argmin(found.scores.values[group.name])) == int(np.argmin(errors))
    assert found.errors[group.name][1] == pytest.approx(min(errors), rel=0.1)  # for the damping
    assert found.errors[group.name][-1] == pytest.approx(1.0, rel=1e-3)  # nothing is left


def test_errors_only_grow(case):
    model, inputs = case
    groups = prunella.couple(prunella.trace(model, inputs(2)))
    data = calibration([inputs(64, 1), inputs(64, 2)])
    found = reconstruct(model, groups, prunella.score(model, groups), data)
    assert found.errors
    for errors in found.errors.values():
        assert errors[0] == 0
        assert (np.diff(errors) >= -1e-9).all()
    before = {name: tensor.clone() for name, tensor in tensors(model).items()}
    worth = value(model, groups, found, data)
    assert all(torch.equal(before[name], t) for name, t in tensors(model).items())
    for group in groups:
        curve = [worth.damage(group.name, k) for k in range(group.channels, -1, -1)]
        assert curve[0] == 0
        assert (np.diff(curve) >= -1e-12).all()


def test_a_cut_is_undone_bit_for_bit_and_refits_what_reads_it(case):
    model, inputs = case
    x = inputs(256, 5)
    groups = prunella.couple(prunella.trace(model, inputs(2)))
    found = reconstruct(model, groups, prunella.score(model, groups), calibration([x]))
    before = {name: tensor.clone() for name, tensor in tensors(model).items()}
    nearer = 0
    for group in groups:
        gone = found.scores.values[group.name].argsort()[: group.channels // 2].tolist()
        with found.cut(model, groups, {group.name: gone}):
            refitted = model(x).detach()
        with prunella.masking.zeroed(model, groups, {group.name: gone}):
            zeroed = model(x).detach()
        dense = model(x).detach()
        nearer += bool((refitted - dense).square().mean() <= (zeroed - dense).square().mean())
    assert nearer >= len(groups) - 1
    assert all(torch.equal(before[name], t) for name, t in tensors(model).items())


class Joined(nn.Module):
    """Two groups that one weight reads; half of each repeats the other half."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(16, 3)
        for layer in (self.one, self.two):
            layer.weight.data[4:] = layer.weight.data[:4]
            layer.bias.data[4:] = layer.bias.data[:4]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.one(x).relu(), self.two(x).relu()], 1))


def test_what_reads_several_groups_is_refitted_for_all_of_them():
    model, x = Joined(), torch.randn(256, 4)
    groups = prunella.couple(prunella.trace(model, x))
    found = reconstruct(model, groups, prunella.score(model, groups), calibration([x]))
    gone = {group.name: [4, 5, 6, 7] for group in groups}
    assert len(gone) == 2
    dense = model(x).detach()
    with found.cut(model, groups, gone):
        refitted = model(x).detach()
        assert not model.head.weight[:, [4, 5, 6, 7, 12, 13, 14, 15]].any()
    with prunella.masking.zeroed(model, groups, gone):
        zeroed = model(x).detach()
    assert (refitted - dense).square().mean() < 1e-3 * (zeroed - dense).square().mean()


def test_channels_that_go_stay_gone_where_what_makes_them_is_refitted():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(64, 4)
    groups = prunella.couple(prunella.trace(model, x))
    found = reconstruct(model, groups, prunella.score(model, groups), calibration([x]))
    with found.cut(model, groups, {group.name: [0, 1] for group in groups}):
        for weight in (model[2].weight[:2], model[2].bias[:2], model[2].weight[:, :2]):
            assert not weight.any()


def test_prune_with_data_beats_prune_without(case):
    model, inputs = case
    fresh = inputs(128, 77)
    without = prunella.prune(model, inputs(2), macs=0.6)
    with_data = prunella.prune(
        model, inputs(2), macs=0.6, calibration=[inputs(64, s) for s in range(4)]
    )
    assert with_data.plan.after.macs <= 0.6 * with_data.plan.before.macs
    assert off(model, with_data.model, fresh) < off(model, without.model, fresh)


def test_repair_leaves_the_model_and_the_data_alone(case):
    model, inputs = case
    groups = prunella.couple(prunella.trace(model, inputs(2)))
    plan = prunella.allocate(groups, prunella.score(model, groups), 0.5)
    data = inputs(32)
    before = {name: tensor.clone() for name, tensor in tensors(model).items()}
    copy = data.clone()
    one = compensate(model, plan, calibration([data]))
    two = compensate(model, plan, calibration([data]))
    assert torch.equal(data, copy)
    assert all(torch.equal(before[name], t) for name, t in tensors(model).items())
    assert all(torch.equal(t, tensors(two)[name]) for name, t in tensors(one).items())
    masked = mask(one, plan)  # what is removed is removed after the repair, too
    assert all(
        torch.equal(t, tensors(masked)[name])
        for name, t in tensors(one).items()
        if name in plan.kept and t.is_floating_point()
    )


def test_batches_of_several_sizes_and_kinds():
    model = trained(Branches())
    batches = [images(16, 1), (images(7, 2), torch.zeros(7)), {"x": images(16, 3)}]
    result = prunella.prune(model, images(1), ratio=0.25, calibration=batches)
    assert result.plan.after.macs < result.plan.before.macs


def test_what_cannot_be_calibrated_says_so():
    model = trained(Branches())
    with pytest.raises(ConfigError, match="hold no batch"):
        prunella.prune(model, images(1), ratio=0.5, calibration=[])
    with pytest.raises(ConfigError, match="a tensor, a tuple or list"):
        prunella.prune(model, images(1), ratio=0.5, calibration=[3])
    with pytest.raises(ConfigError, match="got str"):
        prunella.prune(model, images(1), ratio=0.5, calibration="data")
    with pytest.raises(ConfigError, match="give some as `calibration`"):
        prunella.prune(model, images(1), ratio=0.5, repair=True)


class Chosen(nn.Module):
    """What it computes depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.one(x)
        if float(hidden.sum()) > 0:
            hidden = hidden * 2
        return self.two(hidden[hidden.sum(1) > -100])


def test_a_recorded_run_cannot_be_calibrated():
    with pytest.raises(TraceError, match="recorded run"):
        prunella.prune(Chosen(), torch.randn(2, 4), ratio=0.5, calibration=[torch.randn(8, 4)])


def test_divergence():
    dense = torch.randn(6, 5)
    assert float(divergence(dense, dense)) == pytest.approx(0, abs=1e-6)
    other = dense + 0.1 * torch.randn(6, 5)
    wanted = (dense.softmax(1) * (dense.log_softmax(1) - other.log_softmax(1))).sum(1).mean()
    assert float(divergence(other, dense)) == pytest.approx(float(wanted), rel=1e-4)
    three = torch.randn(2, 3, 4)
    share = (0.1 * torch.ones(2, 3, 4)).square().mean() / three.var()
    assert float(divergence([three + 0.1], [three])) == pytest.approx(float(share), rel=1e-4)


def test_thinned_data_keep_batches_and_their_losses():
    batches = calibration([images(8, seed) for seed in range(10)]).batches
    data = Calibration(batches, lambda outputs, index: outputs * index)
    few = thinned(data, 32)
    assert [id(batch) for batch in few.batches] == [id(batch) for batch in batches[::2]]
    assert few.loss(torch.tensor(1.0), 3) == 6
    assert len(thinned(data, 1000).batches) == 10


def test_batches_are_left_out_where_memory_is_short(monkeypatch, caplog):
    model = trained(Branches())
    ways = courses(model, calibration([images(8, seed) for seed in range(10)]))
    device = torch.device("cpu")
    need = 2 * sum(course.peak for course, _ in ways)
    assert need >= 2 * 10 * 8 * 2 * 24 * 64 * 4  # two tensors of 24 channels at least
    monkeypatch.setattr(marching, "free_bytes", lambda device: 2 * need)
    assert len(within(ways, device, 2)) == 10
    monkeypatch.setattr(marching, "free_bytes", lambda device: need)
    with caplog.at_level("WARNING", "prunella"):
        left = within(ways, device, 2)
    assert len(left) == 5
    assert left[1][1] is ways[2][1]
    assert "5 of 10 calibration batches are used" in caplog.text


def test_class_scores_alone_in_a_tuple_are_compared_as_class_scores() -> None:
    dense, other = torch.randn(8, 5), torch.randn(8, 5)
    assert divergence((other,), (dense,)) == divergence(other, dense) > 0
    assert divergence((dense,), (dense,)) == 0
