"""Heads, norms and statistics over channels: what is one unit, and what the pruned model computes.

The oracles share nothing with the library: a NaN in one channel shows what hangs together, plain
masking is exact where no statistics are taken, and where they are, the masked model here takes them
over the kept channels by hand.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import prunella
from prunella.errors import NothingToPruneError
from prunella.labels.roots import Roots
from tests import oracle
from tests.attention import (
    HEADS,
    SIZE,
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
    projected,
    ready,
    rotary,
    shifted,
    tokens,
)
from tests.coupling import compare_with_experiment

FREE = [fused, by_hand, by_einsum, by_batches, biased, gated, cosine, across, linear]


@pytest.mark.parametrize("attend", FREE)
def test_heads_are_the_units_of_attention(attend: Attend) -> None:
    model, x = ready(Attention(attend)), tokens()
    groups = prunella.couple(prunella.trace(model, x))
    heads = owner(groups, "q.weight")
    assert not heads.frozen
    assert heads.channels == HEADS
    for tensor, dim in (("q.weight", 0), ("k.bias", 0), ("v.weight", 0), ("out.weight", 1)):
        assert heads.axes[prunella.Axis(tensor, dim)].shape == (HEADS, SIZE)
    if attend in (biased, gated, cosine):
        assert heads.axes[prunella.Axis("per_head", 0)].tolist() == [[h] for h in range(HEADS)]
    assert owner(groups, "stem.weight") is owner(groups, "out.weight")
    with sdpa_kernel(SDPBackend.MATH):  # the fast one swallows what is not a number
        assert compare_with_experiment(model, groups, (x,), {}) >= HEADS


@pytest.mark.parametrize("attend", [*FREE, rotary, shifted, projected, normed])
def test_a_model_without_some_heads_computes_what_masking_them_does(attend: Attend) -> None:
    model, x = ready(Attention(attend)), tokens()
    result = prunella.prune(model, x, ratio=0.5)
    assert len(result.plan.kept["q.weight"][0]) == HEADS // 2 * SIZE
    assert type(result.model) is Attention
    oracle.check_pruned(model, result.plan, result.model, (tokens(3, 4, 5),), {})
    check_costs(model, result, x)


@pytest.mark.parametrize("attend", [fused, by_hand, rotary])
def test_query_heads_that_share_a_key_head_are_one_unit(attend: Attend) -> None:
    model, x = ready(Attention(attend, keys=2)), tokens()
    groups = prunella.couple(prunella.trace(model, x))
    heads = owner(groups, "k.weight")
    assert not heads.frozen
    assert heads.channels == 2
    assert heads.axes[prunella.Axis("q.weight", 0)].tolist() == [[*range(8)], [*range(8, 16)]]
    with sdpa_kernel(SDPBackend.MATH):
        assert compare_with_experiment(model, groups, (x,), {}) >= 2
    result = prunella.prune(model, x, ratio=0.5)
    oracle.check_pruned(model, result.plan, result.model, (x,), {})
    check_costs(model, result, x)


def test_one_key_head_for_all_stays_and_query_heads_are_free() -> None:
    model, x = ready(Attention(fused, keys=1)), tokens()
    groups = prunella.couple(prunella.trace(model, x))
    assert owner(groups, "q.weight").channels == HEADS
    assert not owner(groups, "q.weight").frozen
    assert owner(groups, "q.weight") is owner(groups, "out.weight", 1)
    assert "is shared by all heads" in str(owner(groups, "k.weight").frozen)
    assert owner(groups, "v.weight").frozen
    with sdpa_kernel(SDPBackend.MATH):
        compare_with_experiment(model, groups, (x,), {})
    result = prunella.prune(model, x, ratio=0.5)
    oracle.check_pruned(model, result.plan, result.model, (x,), {})
    check_costs(model, result, x)


@pytest.mark.parametrize(
    ("attend", "tensor", "dim"),
    [
        (rotary, "frequencies", 0),
        (shifted, "per_position", 0),
        (projected, "inner.weight", 1),
        (normed, "norm.weight", 0),
        (normed, "norm.bias", 0),
    ],
)
def test_what_all_heads_share_stays_and_heads_are_free(
    attend: Attend, tensor: str, dim: int
) -> None:
    model, x = ready(Attention(attend)), tokens()
    groups = prunella.couple(prunella.trace(model, x))
    assert "is shared by all heads" in str(owner(groups, tensor, dim).frozen)
    assert owner(groups, "q.weight").channels == HEADS
    assert not owner(groups, "q.weight").frozen


class SingleHead(nn.Module):
    """Without heads: every column of queries and keys may go; the scale stays."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(5, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))


def test_columns_of_a_single_head_are_cut_and_keep_the_scale() -> None:
    model, x = ready(SingleHead()), tokens()
    groups = prunella.couple(prunella.trace(model, x))
    assert groups.marked
    assert owner(groups, "q.weight") is owner(groups, "k.weight")
    assert owner(groups, "q.weight").channels == 8
    result = prunella.prune(model, x, ratio=0.5)
    masked = oracle.masked(model, result.plan)
    scaled = F.scaled_dot_product_attention(masked.q(x), masked.k(x), masked.v(x))
    assert oracle.difference([result.model(x)], [masked.out(scaled)]) <= 1e-9
    check_costs(model, result, x)


# -- where heads live is read off the dimensions, not off a layer's name


class Joint(nn.Module):
    """`[n, heads, size]` from one linear layer, an expression, and a linear layer over it all."""

    def __init__(self, expression: Callable[[Tensor, Tensor], Tensor], side: Tensor) -> None:
        super().__init__()
        self.expression = expression
        self.stem = nn.Linear(5, HEADS * SIZE)
        self.side = nn.Parameter(side)
        with torch.no_grad():
            wide = expression(torch.randn(2, HEADS, SIZE), side).flatten(1).shape[1]
        self.head = nn.Linear(wide, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.stem(x)).unflatten(1, (-1, SIZE))
        return self.head(self.expression(y, self.side).flatten(1))


# The expression, the shape of the other parameter, and its frozen dimensions.
JOINT: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...], set[int]]] = {
    "per_head": (lambda x, w: x * w[:, None], (HEADS,), set()),
    "per_position": (lambda x, w: x + w, (SIZE,), {0}),
    "per_both": (lambda x, w: x * w, (HEADS, SIZE), {1}),
    "turned_round": (lambda x, w: (x.transpose(1, 2) * w[:, None]).transpose(1, 2), (SIZE,), {0}),
    "einsum_over_positions": (lambda x, w: torch.einsum("nhd,de->nhe", x, w), (SIZE, 6), {0, 1}),
    "einsum_by_head": (lambda x, w: torch.einsum("nhd,hde->nhe", x, w), (HEADS, SIZE, 6), {1, 2}),
    "einsum_over_all": (lambda x, w: torch.einsum("nhd,hde->ne", x, w), (HEADS, SIZE, 6), {1}),
    "matrix_by_head": (lambda x, w: (x.unsqueeze(2) @ w).squeeze(2), (HEADS, SIZE, 6), {1, 2}),
    "vector_for_all": (lambda x, w: x @ w, (SIZE,), {0}),
    "tensordot": (lambda x, w: torch.tensordot(x, w, ([2], [0])), (SIZE, 6), {0, 1}),
    "inner": (lambda x, w: torch.inner(x, w), (6, SIZE), {0, 1}),
    "mean_of_head": (lambda x, w: x.mean(2) * w, (HEADS,), set()),
    "norm_of_head": (lambda x, w: F.layer_norm(x, x.shape[2:]) * w[:, None], (HEADS,), set()),
    "softmax_in_head": (lambda x, w: x.softmax(2) * w[:, None], (HEADS,), set()),
}


@pytest.mark.parametrize("name", sorted(JOINT))
def test_joint_channels_are_cut_by_the_outer_dimension(name: str) -> None:
    expression, shape, frozen = JOINT[name]
    model, x = ready(Joint(expression, torch.rand(shape) + 0.5)), tokens(3, 5)
    groups = prunella.couple(prunella.trace(model, x))
    heads = owner(groups, "stem.weight")
    assert (heads.channels, heads.frozen) == (HEADS, ())
    assert {d for d in range(len(shape)) if owner(groups, "side", d).frozen} == frozen
    if name.endswith("head") and "side" not in {axis.tensor for axis in heads.axes}:
        compare_with_experiment(model, groups, (x,), {})
    result = prunella.prune(model, x, ratio=0.5)
    oracle.check_pruned(model, result.plan, result.model, (x,), {})
    assert oracle.difference([result.model(x)], [oracle.masked(model, result.plan)(x)]) <= 1e-9
    check_costs(model, result, x)


def test_channels_that_rows_were_summed_over_stay_channels() -> None:
    """Once the rows (paths) are united, what meets the channels alone is no longer shared."""

    def selective(x: Tensor, w: Tensor) -> Tensor:
        gate = torch.tanh(x.sum(1) * w)
        return (x * gate.unsqueeze(1)).sum(1)

    model, x = ready(Joint(selective, torch.rand(SIZE))), tokens(3, 5)
    groups = prunella.couple(prunella.trace(model, x))
    # Summing over heads unites them: now the positions are the channels, on every axis.
    assert owner(groups, "stem.weight") is owner(groups, "side") is owner(groups, "head.weight", 1)
    assert owner(groups, "side").channels == SIZE


# -- products


class Product(nn.Module):
    """Two linear layers and a product between what they give."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.product = product
        self.a, self.b = nn.Linear(5, 8), nn.Linear(5, 8)
        with torch.no_grad():
            wide = product(torch.randn(4, 8), torch.randn(4, 8)).reshape(-1).numel()
        self.head = nn.Linear(wide, 3)

    def forward(self, x: Tensor) -> Tensor:
        made = self.product(torch.tanh(self.a(x)), torch.tanh(self.b(x)))
        return self.head(made.reshape(1, -1))


# Products, whether columns of the two sides are summed against each other (else they stay apart).
PRODUCTS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], bool]] = {
    "matmul": (lambda a, b: a @ b.T, True),
    "mm": (lambda a, b: torch.mm(a, b.T), True),
    "mv": (lambda a, b: torch.mv(a, b[0]), True),
    "matrix_times_vector": (lambda a, b: a @ b[0], True),
    "vector_times_matrix": (lambda a, b: a[0] @ b.T, True),
    "dot": (lambda a, b: torch.dot(a[0], b[0]), True),
    "addmm": (lambda a, b: torch.addmm(torch.ones(4, 4, dtype=a.dtype), a, b.T), True),
    "addmv": (lambda a, b: torch.addmv(torch.ones(4, dtype=a.dtype), a, b[0]), True),
    "bmm": (lambda a, b: torch.bmm(a[None], b[None].mT), True),
    "linear_with_computed_weight": (F.linear, True),
    "linear_with_a_vector": (lambda a, b: F.linear(a, b[0]), True),
    "inner": (torch.inner, True),
    "tensordot": (lambda a, b: torch.tensordot(a, b, ([1], [1])), True),
    "einsum": (lambda a, b: torch.einsum("ic,jc->ij", a, b), True),
    "einsum_dots": (lambda a, b: torch.einsum("...c,...c->...", a, b), True),
    "einsum_three": (lambda a, b: torch.einsum("ic,jc,kc->ijk", a, b, a), True),
    "einsum_implicit": (lambda a, b: torch.einsum("ic,jc", a, b), True),
    "batch_of_one": (lambda a, b: torch.einsum("xic,xjc->xij", a[None], b[None]), True),
    "einsum_alone": (lambda a, b: torch.einsum("ic,jd->id", a, b), False),
    "outer": (lambda a, b: torch.outer(a[0], b[0]), False),
}


def meeting_columns(model: Product, x: Tensor) -> np.ndarray:
    """Find by experiment which columns meet: `[a, b]`, where zeros in one hide the other."""
    with torch.no_grad():
        a, b = torch.tanh(model.a(x)), torch.tanh(model.b(x))
        meets = np.zeros((8, 8), dtype=bool)
        for j in range(8):
            for i in range(8):
                zeroed, moved = b.clone(), a.clone()
                zeroed[:, j] = 0
                moved[:, i] += 1
                meets[i, j] = torch.allclose(model.product(a, zeroed), model.product(moved, zeroed))
        return meets


@pytest.mark.parametrize("name", sorted(PRODUCTS))
def test_summed_sides_of_a_product_are_one(name: str) -> None:
    product, together = PRODUCTS[name]
    model, x = ready(Product(product)), tokens(4, 5)
    groups = prunella.couple(prunella.trace(model, x))
    a, b = owner(groups, "a.weight"), owner(groups, "b.weight")
    assert not a.frozen
    assert (a is b) == together
    if together and name != "einsum_three":  # there a column of `a` hides itself
        columns = [a.axes[prunella.Axis(f"{side}.weight", 0)][:, 0] for side in "ab"]
        wanted = columns[0][:, None] == columns[1][None]
        assert (meeting_columns(model, x) == wanted[np.argsort(columns[0])]).all()
    result = prunella.prune(model, x, ratio=0.5)
    check_costs(model, result, x)
    if together:  # tanh(0) = 0: what is masked adds nothing
        oracle.check_pruned(model, result.plan, result.model, (x,), {})
    left, right = (list(result.plan.kept.get(f"{n}.weight", {}).get(0, range(8))) for n in "ab")
    columns_kept = result.plan.kept.get("head.weight", {}).get(1, range(model.head.in_features))
    with torch.no_grad():
        small = product(torch.tanh(model.a(x))[:, left], torch.tanh(model.b(x))[:, right])
        weight = model.head.weight[:, list(columns_kept)]
        found = F.linear(small.reshape(1, -1), weight, model.head.bias)
    assert oracle.difference([result.model(x)], [found]) <= 1e-9


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(5, 6)
        self.both = nn.Bilinear(8, 6, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.both(self.a(x), self.b(x)))


def test_bilinear_layers_lose_channels_on_all_three_sides() -> None:
    model, x = ready(Bilinear()), tokens(4, 5)
    groups = prunella.couple(prunella.trace(model, x))
    assert owner(groups, "a.weight") is owner(groups, "both.weight", 1)
    assert owner(groups, "b.weight") is owner(groups, "both.weight", 2)
    assert owner(groups, "both.bias") is owner(groups, "head.weight", 1)
    result = prunella.prune(model, x, ratio=0.5)
    oracle.check_pruned(model, result.plan, result.model, (x,), {})
    check_costs(model, result, x)


# -- norms and other statistics: the masked model takes them over the kept channels, by hand


class Hand(nn.Module):
    """A norm over the last dimension or over blocks of dimension 1, of the kept channels only."""

    def __init__(self, norm: nn.Module, kept: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.norm, self.kept, self.dim = norm, torch.tensor(kept), dim

    def forward(self, x: Tensor) -> Tensor:
        small = x.index_select(self.dim, self.kept)
        weight = bias = None
        if getattr(self.norm, "weight", None) is not None:
            weight = self.norm.weight[self.kept]
        if getattr(self.norm, "bias", None) is not None:
            bias = self.norm.bias[self.kept]
        out = torch.zeros_like(x)
        return out.index_copy_(self.dim, self.kept, self.of(small, weight, bias))

    def of(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if isinstance(self.norm, nn.GroupNorm):
            blocks = self.norm.num_groups if self.norm.num_groups < 8 else x.shape[1]
            rows = x.reshape(x.shape[0], blocks, -1)
            rows = rows - rows.mean(2, keepdim=True)
            x = (rows / (rows.var(2, keepdim=True, correction=0) + 1e-5).sqrt()).reshape(x.shape)
            wide = (1, -1) + (1,) * (x.ndim - 2)
            return x if weight is None else x * weight.view(wide) + bias.view(wide)
        if isinstance(self.norm, nn.LayerNorm):
            x = x - x.mean(-1, keepdim=True)
            x = x / ((x * x).mean(-1, keepdim=True) + 1e-5).sqrt()
        else:
            x = x / ((x * x).mean(-1, keepdim=True) + 1e-6).sqrt()
        x = x if weight is None else x * weight
        return x if bias is None else x + bias


class RootMeanSquare(nn.Module):
    """As transformers write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Normed(nn.Module):
    def __init__(self, norm: nn.Module, images: bool) -> None:
        super().__init__()
        self.norm = norm
        self.stem: nn.Module = nn.Conv2d(3, 8, 3) if images else nn.Linear(5, 8)
        self.head: nn.Module = nn.Conv2d(8, 3, 1) if images else nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.sigmoid(self.norm(torch.sigmoid(self.stem(x)))))


NORMS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "layer_norm": (lambda: nn.LayerNorm(8), False),
    "layer_norm_without_bias": (lambda: nn.LayerNorm(8, bias=False), False),
    "layer_norm_bare": (lambda: nn.LayerNorm(8, elementwise_affine=False), False),
    "rms_norm": (lambda: nn.RMSNorm(8, eps=1e-6), False),
    "rms_norm_by_hand": (lambda: RootMeanSquare(8), False),
    "group_norm": (lambda: nn.GroupNorm(2, 8), True),
    "group_norm_of_one": (lambda: nn.GroupNorm(1, 8), True),
    "group_norm_of_each": (lambda: nn.GroupNorm(8, 8), True),
    "group_norm_bare": (lambda: nn.GroupNorm(4, 8, affine=False), True),
}


@pytest.mark.parametrize("name", sorted(NORMS))
def test_a_norm_over_channels_is_over_those_that_are_kept(name: str) -> None:
    build, images = NORMS[name]
    model = ready(Normed(build(), images))
    x = tokens(2, 3, 7, 7) if images else tokens()
    groups = prunella.couple(prunella.trace(model, x))
    assert bool(groups.marked) == (name != "group_norm_of_each")
    result = prunella.prune(model, x, ratio=0.5)
    kept = result.plan.kept["stem.weight"][0]
    assert len(kept) == 4
    masked = oracle.masked(model, result.plan)
    masked.norm = Hand(masked.norm, kept, 1 if images else 2)
    assert oracle.difference([result.model(x)], [masked(x)]) <= 1e-9
    if name in ("group_norm", "group_norm_bare"):
        blocks = np.array(kept) // (8 // model.norm.num_groups)
        assert len(set(np.bincount(blocks).tolist())) == 1, "every block keeps equally many"


class Statistic(nn.Module):
    def __init__(self, expression: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.expression = expression
        self.stem = nn.Linear(5, 8)
        with torch.no_grad():
            wide = expression(torch.randn(2, 6, 8))
        self.head = nn.Linear(wide.shape[-1], 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.expression(torch.sigmoid(self.stem(x))))


STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean(-1, keepdim=True),
    "mean_without_dim": lambda x: x.mean(-1)[..., None],
    "sum": lambda x: x.sum(-1, keepdim=True),
    "var": lambda x: x.var(-1, keepdim=True),
    "std": lambda x: x.std(2, keepdim=True),
    "var_mean": lambda x: torch.cat(torch.var_mean(x, 2, keepdim=True), -1),
    "norm": lambda x: x.norm(dim=-1, keepdim=True),
    "norm_1": lambda x: x.norm(1, -1, keepdim=True),
    "linalg_norm": lambda x: torch.linalg.norm(x, dim=-1, keepdim=True),
    "amax": lambda x: x.amax(-1, keepdim=True),
    "max_values": lambda x: x.max(-1, keepdim=True).values,
    "aminmax": lambda x: torch.cat(torch.aminmax(x, dim=-1, keepdim=True), -1),
    "prod": lambda x: x.prod(-1, keepdim=True),
    "logsumexp": lambda x: x.logsumexp(-1, keepdim=True),
    "mean_by_hand": lambda x: x.sum((1, 2), keepdim=True) / x[0].numel(),
    "all_dimensions": lambda x: x * x.mean(),
    "two_dimensions": lambda x: x * x.mean((1, 2), keepdim=True),
    "std_of_everything": lambda x: x / x.std(),
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "softmin": lambda x: F.softmin(x, -1),
    "normalize": lambda x: F.normalize(x, dim=-1),
    "mean_squared_error": lambda x: x * F.mse_loss(x, x * x),
    "absolute_errors": lambda x: x * F.l1_loss(x, x * x, reduction="sum"),
    "cross_entropies": lambda x: x * F.binary_cross_entropy_with_logits(x, x),
    "pairwise_distance": lambda x: F.pairwise_distance(x, x * x, keepdim=True),
    "cosine_similarity": lambda x: F.cosine_similarity(x, x * x, dim=-1)[..., None],
    "centred": lambda x: x - x.mean(-1, keepdim=True),
    "gate": lambda x: x * torch.sigmoid(x.mean(-1, keepdim=True)),
    "layer_norm_over_two": lambda x: F.layer_norm(x, x.shape[1:]),
    "gram": lambda x: x @ x.mT,
}


@pytest.mark.parametrize("name", sorted(STATISTICS))
def test_statistics_over_channels_are_of_those_that_are_kept(name: str) -> None:
    expression = STATISTICS[name]
    model, x = ready(Statistic(expression)), tokens()
    groups = prunella.couple(prunella.trace(model, x))
    assert groups.marked
    result = prunella.prune(model, x, ratio=0.5)
    kept = list(result.plan.kept["stem.weight"][0])
    assert len(kept) == 4
    columns = result.plan.kept.get("head.weight", {}).get(1, tuple(range(model.head.in_features)))
    with torch.no_grad():
        small = expression(torch.sigmoid(model.stem(x))[..., kept])
        wanted = F.linear(small, model.head.weight[:, list(columns)], model.head.bias)
    assert oracle.difference([result.model(x)], [wanted]) <= 1e-9


ORDERED: dict[str, Callable[[Tensor], Tensor]] = {
    "argmax": lambda x: x.argmax(-1, keepdim=True).to(x),
    "max_indices": lambda x: x.max(-1, keepdim=True).indices.to(x),
    "median": lambda x: x.median(-1, keepdim=True).values,
    "topk": lambda x: x.topk(3, -1).values,
    "sort": lambda x: x.sort(-1).values,
    "argsort": lambda x: x.argsort(-1).to(x),
    "cumsum": lambda x: x.cumsum(-1),
    "cummax": lambda x: x.cummax(-1).values,
}


@pytest.mark.parametrize("name", sorted(ORDERED))
def test_channels_that_are_ordered_or_counted_stay(name: str) -> None:
    model, x = ready(Statistic(ORDERED[name])), tokens()
    groups = prunella.couple(prunella.trace(model, x))
    (reason,) = owner(groups, "stem.weight").frozen
    assert "is searched for a position" in reason.reason or "in order" in reason.reason
    with pytest.raises(NothingToPruneError):
        prunella.prune(model, x, ratio=0.5)


# -- weights that are computed


class Standardised(nn.Conv2d):
    """A convolution that norms its weight, over its input channels too (as timm does)."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        flat = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(x, flat.reshape_as(self.weight), self.bias)


def by_length(module: nn.Module) -> nn.Module:
    return torch.nn.utils.parametrizations.weight_norm(module)


class Images(nn.Sequential):
    def __init__(self, middle: nn.Module) -> None:
        last = (nn.Sigmoid(), nn.Conv2d(6, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(nn.Conv2d(3, 8, 3), nn.Sigmoid(), middle, *last)


def standardised(weight: Tensor) -> Tensor:
    flat = weight.flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    flat = flat / (flat.var(1, keepdim=True, correction=0) + 1e-6).sqrt()
    return flat.view(weight.shape)


def test_a_standardised_weight_is_standardised_over_what_is_kept() -> None:
    model, x = ready(Images(Standardised(8, 6, 3))), tokens(2, 3, 9, 9)
    result = prunella.prune(model, x, ratio=0.5)
    rows, columns = (result.plan.kept["2.weight"][d] for d in (0, 1))
    assert (len(rows), len(columns)) == (3, 4)
    masked = oracle.masked(model, result.plan)
    plain = nn.Conv2d(8, 6, 3).double()
    with torch.no_grad():
        plain.weight.zero_()
        small = standardised(model[2].weight[list(rows)][:, list(columns)])
        plain.weight[np.ix_(rows, columns)] = small
        plain.bias.copy_(masked[2].bias)
    masked[2] = plain
    assert oracle.difference([result.model(x)], [masked(x)]) <= 1e-9


def test_a_weight_with_a_length_of_its_own_loses_rows_and_columns() -> None:
    model, x = ready(Images(by_length(nn.Conv2d(8, 6, 3)))), tokens(2, 3, 9, 9)
    result = prunella.prune(model, x, ratio=0.5)
    direction = "2.parametrizations.weight.original1"
    assert {d: len(result.plan.kept[direction][d]) for d in (0, 1)} == {0: 3, 1: 4}
    weight = model[2].parametrizations.weight
    rows, columns = (list(result.plan.kept[direction][d]) for d in (0, 1))
    plain = nn.Conv2d(4, 3, 3).double()
    with torch.no_grad():
        small = weight.original1[rows][:, columns]
        length = small.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        plain.weight.copy_(small / length * weight.original0[rows])
        plain.bias.copy_(model[2].bias[rows])
        middle = plain(model[1](model[0](x))[:, columns])
        last = F.conv2d(torch.sigmoid(middle), model[4].weight[:, rows], model[4].bias)
    assert oracle.difference([result.model(x)], [last.mean((2, 3))]) <= 1e-9


# -- union-find


def test_roots_agree_with_connected_components() -> None:
    random = np.random.default_rng(0)
    for count in (1, 2, 30, 300):
        roots = Roots()
        roots.grow(count)
        a, b = random.integers(0, count, (2, 3 * count // 4))
        for part in np.array_split(np.arange(len(a)), 3):
            roots.join(a[part], b[part])
        edges = coo_array((np.ones(len(a)), (a, b)), shape=(count, count))
        _, wanted = connected_components(edges, directed=False)
        found = roots.of(np.arange(count))
        pairs = set(zip(found.tolist(), wanted.tolist(), strict=True))
        assert len(pairs) == len(set(found.tolist())) == len(set(wanted.tolist()))


class Latents(nn.Module):
    """Queries of its own, the same for every sample, as in a Perceiver; torch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 3, 16))
        self.stem = nn.Linear(6, 16)
        self.attend = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        queries = self.queries.repeat(x.shape[0], 1, 1)
        return self.head(self.attend(queries, x, x, need_weights=False)[0])


def test_heads_of_queries_that_are_the_same_for_every_sample_are_cut() -> None:
    torch.manual_seed(0)
    model, x = Latents().double().eval(), torch.randn(2, 7, 6, dtype=torch.float64)
    groups = prunella.couple(prunella.trace(model, x), form="graph")
    assert owner(groups, "attend.in_proj_weight").channels == 4
    assert not owner(groups, "attend.in_proj_weight").frozen
    result = prunella.prune(model, x, ratio=0.5, form="graph")
    assert result.certificate.holds
    assert result.model(x[:1]).shape == (1, 3, 3)
