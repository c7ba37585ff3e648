"""Positions inside heads: all heads stay, each loses equally many, and the scale stays the same.

Since it does, plain masking is the oracle wherever no statistics are taken: zeros add nothing to
the products of queries and keys.
"""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunella
from prunella.errors import CertificateError, ConfigError
from prunella.plan import Form, Plan
from tests import oracle
from tests.attention import (
    HEADS,
    SIZE,
    WIDTH,
    Attend,
    Attention,
    across,
    biased,
    by_batches,
    by_einsum,
    by_hand,
    check_costs,
    cosine,
    fused,
    gated,
    linear,
    normed,
    owner,
    placed,
    pooled,
    projected,
    ready,
    rotary,
    shaped,
    shifted,
    tokens,
    turned,
)

EXACT = [fused, by_hand, by_einsum, by_batches, biased, gated, cosine, rotary, shifted, projected,
         pooled, placed, shaped]  # fmt: skip
OTHERS = [across, linear, normed]  # masking alone is not what they compute: see the certificate
WHOLE = HEADS * SIZE


def couple(model: nn.Module, x: Tensor) -> prunella.Groups:
    return prunella.couple(prunella.trace(model, x), form="graph", heads="inside")


def prune(model: nn.Module, *inputs: Tensor, **options: Any) -> prunella.PruneResult:
    return prunella.prune(model, inputs, heads="inside", **{"ratio": 0.5, **options})


@pytest.mark.parametrize("attend", [*EXACT, *OTHERS])
def test_a_model_with_shorter_heads_computes_what_masking_does(attend: Attend) -> None:
    model, x = ready(Attention(attend)), tokens()
    result = prune(model, x)
    for tensor, dim in (("q.weight", 0), ("k.weight", 0), ("v.weight", 0), ("out.weight", 1)):
        kept = torch.tensor(result.plan.kept[tensor][dim])
        heads = torch.bincount(kept // SIZE, minlength=HEADS)
        assert heads.tolist() == [SIZE // 2] * HEADS, f"{tensor}: every head keeps equally many"
    if attend not in (projected, across):  # where queries meet keys as they were made
        assert result.plan.kept["q.weight"][0] == result.plan.kept["k.weight"][0]
    if attend in EXACT:
        wanted = oracle.masked(model, result.plan)
        for given in (x, tokens(3, 4, 5)):
            assert oracle.difference([result.model(given)], [wanted(given)]) <= 1e-9
    check_costs(model, result, x)


@pytest.mark.parametrize("attend", [fused, by_hand, by_einsum, by_batches, biased, gated, cosine])
def test_every_head_chooses_its_own_positions(attend: Attend) -> None:
    model, x = ready(Attention(attend)), tokens()
    groups = couple(model, x)
    assert owner(groups, "q.weight") is owner(groups, "k.weight")
    assert owner(groups, "v.weight") is owner(groups, "out.weight", 1)
    assert owner(groups, "q.weight").channels == owner(groups, "v.weight").channels == WHOLE
    if attend in (biased, gated, cosine):
        assert owner(groups, "per_head").frozen, "heads are counted, and stay"
    with torch.no_grad():  # head h wants to keep the positions h and h + 1
        for part in (model.q, model.k):
            part.weight.mul_(0.01)
            for head in range(HEADS):
                for position in (head % SIZE, (head + 1) % SIZE):
                    part.weight[head * SIZE + position] *= 100
    plan = prune(model, x).plan
    wanted = [h * SIZE + p for h in range(HEADS) for p in sorted((h % SIZE, (h + 1) % SIZE))]
    assert list(plan.kept["q.weight"][0]) == wanted
    assert plan.kept["v.weight"][0] != plan.kept["q.weight"][0]


@pytest.mark.parametrize(
    ("attend", "tensor"), [(shifted, "per_position"), (projected, "inner.weight"),
                           (normed, "norm.weight")],
)  # fmt: skip
def test_what_all_heads_share_makes_them_lose_the_same_positions(
    attend: Attend, tensor: str
) -> None:
    model, x = ready(Attention(attend)), tokens()
    groups = couple(model, x)
    shared = owner(groups, tensor)
    assert not shared.frozen
    assert shared.channels == SIZE
    positions = owner(groups, "k.weight").axes[prunella.Axis("k.weight", 0)]
    assert positions.tolist() == [[h * SIZE + p for h in range(HEADS)] for p in range(SIZE)]
    assert owner(groups, "v.weight").channels == WHOLE


@pytest.mark.parametrize("attend", [fused, by_hand, rotary])
@pytest.mark.parametrize("keys", [1, 2])
def test_key_heads_lose_the_positions_of_their_query_heads(attend: Attend, keys: int) -> None:
    model, x = ready(Attention(attend, keys=keys)), tokens()
    groups = couple(model, x)
    if attend is not rotary:
        positions = owner(groups, "k.weight").axes[prunella.Axis("q.weight", 0)]
        assert positions.shape == (keys * SIZE, HEADS // keys)
    result = prune(model, x)
    assert oracle.difference([result.model(x)], [oracle.masked(model, result.plan)(x)]) <= 1e-9
    check_costs(model, result, x)


def test_rotary_positions_go_in_pairs_with_their_frequency() -> None:
    model, x = ready(Attention(rotary)), tokens()
    group = owner(couple(model, x), "frequencies")
    assert not group.frozen
    rows = group.axes[prunella.Axis("q.weight", 0)].tolist()
    half = SIZE // 2
    assert rows == [
        [h * SIZE + p + s for h in range(HEADS) for s in (0, half)] for p in range(half)
    ]


class FixedRotation(Attention):
    """Rotary embeddings whose angles follow from the size of a head alone."""

    def __init__(self) -> None:
        super().__init__(by_rotation)


def by_rotation(self: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    powers = torch.arange(0, q.shape[-1], 2, dtype=q.dtype) / q.shape[-1]
    angles = torch.outer(torch.arange(q.shape[2], dtype=q.dtype), 100.0**-powers)
    angles = torch.cat((angles, angles), -1)
    q, k = (a * angles.cos() + turned(a) * angles.sin() for a in (q, k))
    return fused(self, q, k, v)


def test_a_table_made_of_positions_leaves_queries_and_keys_whole() -> None:
    model, x = ready(FixedRotation()), tokens()
    result = prune(model, x)
    assert set(result.plan.kept) >= {"v.weight", "out.weight"}
    assert not {"q.weight", "k.weight"} & {
        name for name, dims in result.plan.kept.items() if 0 in dims
    }
    reasons = "\n".join(result.summary.groups.why_frozen())
    assert "q (4 channels): counts heads, which all stay" in reasons
    assert oracle.difference([result.model(x)], [oracle.masked(model, result.plan)(x)]) <= 1e-9


# -- the user's own class: attributes follow, and so does the scale


class Fused(nn.Module):
    """One layer for all three, as in timm; the scale as each of `SCALES` writes it."""

    def __init__(self, scaled: str) -> None:
        super().__init__()
        self.scaled = scaled
        self.num_heads, self.head_dim = HEADS, SIZE
        self.scale = self.head_dim**-0.5
        self.dropout = self.scale  # by chance, and no scale
        self.stem = nn.Linear(5, WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * HEADS * SIZE)
        self.norm = nn.LayerNorm(SIZE)
        self.out = nn.Linear(HEADS * SIZE, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        n, length, _ = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = SCALES[self.scaled](self, q, k, v)
        return self.out(y.transpose(1, 2).reshape(n, length, self.num_heads * self.head_dim))


SCALES = {
    "read off the shape": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v),
    "an attribute": lambda m, q, k, v: (q * m.scale @ k.mT).softmax(-1) @ v,
    "an argument": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, scale=m.scale),
    "computed": lambda m, q, k, v: (q @ k.mT * m.head_dim**-0.5).softmax(-1) @ v,
    "a root": lambda m, q, k, v: (q @ k.mT / math.sqrt(k.shape[-1])).softmax(-1) @ v,
    "divided before": lambda m, q, k, v: (q / math.sqrt(q.size(-1)) @ k.mT).softmax(-1) @ v,
    "behind a norm": lambda m, q, k, v: F.scaled_dot_product_attention(m.norm(q), m.norm(k), v),
    "none": lambda m, q, k, v: (q @ k.mT).softmax(-1) @ v,
}


def with_norms_over_kept(model: nn.Module, plan: Plan) -> nn.Module:
    """Mask, and let the norm inside heads look at what is kept."""
    masked = oracle.masked(model, plan)
    kept = torch.tensor(plan.kept["norm.weight"][0])

    def forward(x: Tensor) -> Tensor:
        norm, some = masked.norm, x.index_select(-1, kept)
        some = F.layer_norm(some, some.shape[-1:], norm.weight[kept], norm.bias[kept])
        return torch.zeros_like(x).index_copy(-1, kept, some)

    masked.norm.forward = forward
    return masked


@pytest.mark.parametrize("scaled", sorted(SCALES))
@pytest.mark.parametrize("form", ["class", "graph"])
def test_the_scale_of_attention_stays(scaled: str, form: Form) -> None:
    model, x = ready(Fused(scaled)), tokens()
    result = prune(model, x, form=form)
    masks = with_norms_over_kept if scaled == "behind a norm" else oracle.masked
    masked = masks(model, result.plan)
    for given in (x, tokens(3, 6, 5)):
        assert oracle.difference([result.model(given)], [masked(given)]) <= 1e-9
    if form == "class":
        assert type(result.model) is Fused
        assert result.model.head_dim == SIZE // 2
        assert result.model.num_heads == HEADS
        assert result.model.scale == (SIZE // 2) ** -0.5, (
            "used or not, as it would be computed anew"
        )
        assert result.model.dropout == SIZE**-0.5
    check_costs(model, result, x)


def test_a_weight_that_was_not_scaled_is_found() -> None:
    model, x = ready(Fused("read off the shape")).float(), tokens().float()
    result = prune(model, x)
    assert result.certificate.dtype == "float64"
    assert result.certificate.error <= 1e-12, "the digits that float32 lacks do not count"
    rows = torch.tensor(result.plan.kept["qkv.weight"][0])
    with torch.no_grad():
        result.model.qkv.weight.copy_(model.qkv.weight[rows][:, list(_columns(result.plan))])
    with pytest.raises(CertificateError, match="differs from the masked one"):
        prunella.certify(model, result.model, result.plan, (x,))


def _columns(plan: Plan) -> tuple[int, ...]:
    return tuple(plan.kept["qkv.weight"][1])  # type: ignore[arg-type]


def test_a_plan_with_a_scale_survives_json_and_a_second_pruning(tmp_path: Any) -> None:
    model, x = ready(Fused("read off the shape")), tokens()
    first = prune(model, x, ratio={"qkv": 0.25, "qkv#2": 0.5})
    second = prune(first.model, x, ratio={"qkv": 0.34})
    plan = prunella.plan_of(second.model)
    assert plan is not None
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.heads == "inside"
    masked = oracle.masked(model, plan)
    assert oracle.difference([second.model(x)], [masked(x)]) <= 1e-9
    again = prunella.transform(model, plan, x)  # from the dense model in one step
    assert oracle.difference([again(x)], [masked(x)]) <= 1e-9
    prunella.save(second.model, tmp_path)
    loaded = prunella.load(tmp_path, ready(Fused("read off the shape")))
    assert torch.equal(loaded(x), second.model(x))
    unproven = prunella.transform(model, first.plan, certify=False)
    assert torch.equal(unproven(x), first.model(x))


# -- torch's own


class Torchs(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.stem = nn.Linear(5, WIDTH)
        self.inner = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **options)
        self.out = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, need_weights: bool) -> Tensor:
        x = torch.tanh(self.stem(x))
        return self.out(x + self.inner(x, x, x, need_weights=need_weights)[0])


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": WIDTH, "vdim": WIDTH}])
def test_torchs_own_attention_keeps_its_heads(need_weights: bool, options: dict[str, Any]) -> None:
    model, x = ready(Torchs(**options)), tokens()
    result = prunella.prune(model, (x, need_weights), ratio=0.5, heads="inside")
    inner = result.model.inner
    assert (inner.num_heads, inner.embed_dim) == (HEADS, WIDTH // 2)
    masked = oracle.masked(model, result.plan)
    found = [result.model(x, need_weights)]
    assert oracle.difference(found, [masked(x, need_weights)]) <= 1e-9


def test_another_choice_is_refused() -> None:
    with pytest.raises(ConfigError, match="`heads` is 'whole' or 'inside', got 'half'"):
        prunella.prune(Attention(fused), tokens().float(), ratio=0.5, heads="half")


class _Biased(nn.Module):
    """Attention whose bias is copied as long as there are several heads."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.table = nn.Parameter(torch.randn(6, 6, heads))

    def forward(self, x: Tensor) -> Tensor:
        n, length = x.shape[:2]
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.table.permute(2, 0, 1).unsqueeze(0).contiguous()
        y = F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2)
        return x + self.out(y.reshape(n, length, -1))


def test_a_copy_that_pruning_makes_needless_does_not_hide_the_scale() -> None:
    model = ready(nn.Sequential(nn.Linear(5, 8), _Biased(1), _Biased(2), nn.Linear(8, 3)))
    result = prunella.prune(model, tokens(), ratio=0.5)
    assert result.model[2].heads == 1
    assert result.model[1].qkv.out_features == 12
    assert result.plan.factors
