"""Repair where a weight is not alone: shared norms, biases of others, dead branches, odd axes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunella


def error(net: nn.Module, pruned: nn.Module, inputs: Tensor) -> float:
    with torch.no_grad():
        wanted = net.eval()(inputs)
        return float((pruned.eval()(inputs) - wanted).square().mean() / wanted.var())


def both(net: nn.Module, inputs: Tensor, **options: object) -> tuple[float, float]:
    """Return the errors without and with repair, of the same plan as far as that may be."""
    batches = list(inputs.split(16))
    with_data = {"calibration": batches, "criterion": "magnitude", "ratio": 0.5, **options}
    cut = prunella.prune(net, batches[0], repair=False, **with_data)
    repaired = prunella.prune(net, batches[0], **with_data)
    assert cut.plan.channels == repaired.plan.channels
    assert all(bool(p.isfinite().all()) for p in repaired.model.parameters())
    return error(net, cut.model, inputs), error(net, repaired.model, inputs)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.head = nn.Linear(16, 96), nn.Linear(32, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (4, 8)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(x + self.out(y)).mean(1)


@pytest.mark.parametrize("seed", range(3))
def test_positions_inside_heads_are_repaired(seed: int) -> None:
    torch.manual_seed(seed)
    cut, repaired = both(Attention(), drawn(64, 6, 16), heads="inside")
    assert repaired < 0.3 * cut


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(12, 12, 3, padding=1) for _ in range(2))
        self.norm = nn.BatchNorm2d(12)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.norm(self.two(self.one(x).relu()))).relu()


def test_a_branch_that_is_switched_off_makes_no_nan() -> None:
    torch.manual_seed(0)
    stem, head = nn.Conv2d(3, 12, 3, padding=1), nn.Linear(12, 4)
    net = nn.Sequential(stem, Block(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    cut, repaired = both(net, drawn(64, 3, 8, 8))
    assert repaired < cut


class Overflowing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.sigmoid(self.b(torch.exp(self.a(x)))))


def test_what_overflows_is_left_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    inputs = drawn(64, 6)
    inputs[5] *= 1000
    result = prunella.prune(
        Overflowing(), inputs[:2], ratio=0.5, criterion="magnitude", calibration=[inputs]
    )
    assert all(bool(p.isfinite().all()) for p in result.model.parameters())
    assert "`b.weight` is not repaired" in caplog.text


class Biased(nn.Module):
    """Biases that are not the layers' own: a buffer, one for two, one that is computed."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b, self.c = nn.Linear(8, 24), nn.Linear(24, 24), nn.Linear(24, 5)
        with torch.no_grad():  # half of the channels hardly matter, and the biases do
            self.a.weight[12:] *= 0.05
            self.a.bias.normal_()
            self.b.weight[:, 12:] *= 0.05
            self.b.bias.normal_().mul_(3)
        if kind == "shared":
            self.b.bias = self.a.bias
        self.register_buffer("fixed", 3 * torch.randn(24))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        if self.kind == "buffer":
            x = F.linear(x, self.b.weight, self.fixed)
        elif self.kind == "computed":
            x = F.linear(x, self.b.weight, self.b.bias * 2)
        else:
            x = self.b(x)
        return self.c(x.relu())


@pytest.mark.parametrize("kind", ["own", "buffer", "shared", "computed"])
def test_a_bias_of_others_is_not_counted_twice(kind: str) -> None:
    torch.manual_seed(0)
    cut, repaired = both(Biased(kind), drawn(256, 8), ratio={"a": 0.5})
    assert repaired < cut


class Tokens(nn.Module):
    """Batch norm over tokens, or a factor for each, where the channels lie elsewhere."""

    def __init__(self, kind: str, tokens: int) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b = nn.Linear(10, 32), nn.Linear(32, 24, bias=False)
        self.norm = nn.BatchNorm1d(tokens)
        self.norm.running_mean.normal_()
        self.gain = nn.Parameter(torch.rand(tokens, 1))
        nn.init.ones_(self.a.bias)
        self.wide = nn.Linear(10, 24)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x).relu())
        return self.norm(y) if self.kind == "norm" else self.wide(x) + y * self.gain


@pytest.mark.parametrize("tokens", [7, 24])
@pytest.mark.parametrize("kind", ["norm", "gain"])
def test_norms_and_factors_over_tokens_are_none_over_channels(kind: str, tokens: int) -> None:
    torch.manual_seed(0)
    cut, repaired = both(Tokens(kind, tokens), drawn(64, tokens, 10))
    assert repaired < cut


class SharedNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c0 = nn.Conv2d(3, 16, 3, padding=1)
        self.c1, self.c2 = nn.Conv2d(16, 12, 1, bias=False), nn.Conv2d(12, 12, 1, bias=False)
        self.norm = nn.BatchNorm2d(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.c1(self.c0(x).relu())).relu()
        return self.norm(self.c2(x)).mean((2, 3))


@pytest.mark.parametrize("seed", range(3))
def test_a_norm_of_two_layers_is_not_shifted_by_one(seed: int) -> None:
    torch.manual_seed(seed)
    cut, repaired = both(SharedNorm(), drawn(64, 3, 8, 8), ratio={"c0": 0.75})
    assert repaired < 0.5 * cut


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.o = nn.Linear(10, 32), nn.Linear(32, 5)
        self.t = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.o(self.t(self.i(x), src_mask=mask)[:, -1])


def test_an_additive_mask_may_be_an_input() -> None:
    torch.manual_seed(0)
    mask = nn.Transformer.generate_square_subsequent_mask(6)
    assert bool(mask.isinf().any())
    inputs = (drawn(8, 6, 10), mask)
    result = prunella.prune(Masked(), inputs, ratio=0.5, calibration=[inputs])
    assert result.certificate.holds


def test_products_inside_a_fused_encoder_are_heard() -> None:
    torch.manual_seed(0)
    mask = torch.zeros(6, 6)
    net = Masked().eval()
    groups = prunella.couple(prunella.trace(net, (drawn(8, 6, 10), mask)))
    data = [(drawn(8, 6, 10), mask)]
    wanda, reading = prunella.score(net, groups, "wanda", data), prunella.score(net, groups)
    inner = next(g.name for g in groups if "linear1" in g.name)
    assert (wanda.values[inner].argsort() != reading.values[inner].argsort()).any()
