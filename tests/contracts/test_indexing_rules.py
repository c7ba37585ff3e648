"""Rules for look-ups, writes by index and into views, sampling at computed places, frequencies.

As in `test_op_rules`: each case is one expression between a convolution and a linear layer.
"""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import prunella
from tests import oracle
from tests.contracts.test_op_rules import CHANNELS, Expression, build
from tests.coupling import check_stays_or_is_right


def boxes(x: Tensor) -> Tensor:
    return torch.tensor([[0, 0.5, 1.0, 4.0, 5.0], [1, 0, 0, 3, 3]], dtype=x.dtype)


def assigned(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :, ::2] = x[:, :, ::2] * 2
    return out


def assigned_into_zeros(x: Tensor) -> Tensor:
    out = torch.zeros(x.shape[0], x.shape[1], 8, 6, dtype=x.dtype)
    out[:, :, 1:7] = x
    return out + 1


def copied_into_views(x: Tensor) -> Tensor:
    out = x.new_zeros(x.shape[0], 3, x.shape[1], 6, 6)
    for i, view in enumerate(out.unbind(1)):
        view.copy_(x * i)
    return out.permute(0, 2, 1, 3, 4)


def viewed_then_written(x: Tensor) -> Tensor:
    out = x.new_empty(x.shape[0], x.shape[1], 6, 6)
    flat = out.view(x.shape[0], x.shape[1], 36)
    flat[:, :, :18] = x.flatten(2)[:, :, 18:]
    flat[:, :, 18:].fill_(0.5)
    return out


def added_in_place(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :, 0] += x.mean(2)
    y[:, :, 1].mul_(2)
    return y


def halves(x: Tensor) -> Tensor:
    channels = x.shape[1]
    out = torch.zeros(x.shape[0], 2 * channels, 6, 6, dtype=x.dtype)
    out[:, :channels] = x
    out[:, channels:] = x.exp()
    return out


def written_sideways(x: Tensor) -> Tensor:
    out = torch.zeros(x.shape[0], 6, 6, x.shape[1], dtype=x.dtype)
    out.permute(0, 3, 1, 2)[:, :, :, 2:].add_(x[:, :, :, 2:])
    out.transpose(1, 2)[:, 0] -= 1
    return out


def partly_activated(x: Tensor) -> Tensor:
    x = x.clone()
    x.chunk(2, 1)[0].relu_()
    return x


def experts(x: Tensor) -> Tensor:
    """Route rows as mixtures of experts do."""
    rows = x.permute(0, 2, 3, 1).flatten(0, 2)
    out = torch.zeros_like(rows)
    hit = torch.arange(rows.shape[0]) % 2
    for i in range(2):
        (at,) = torch.where(hit == i)
        out.index_add_(0, at, rows[at] * (i + 1))
    return out.view(x.shape[0], 36, -1)


def put(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :, torch.tensor([1, 4])] = x[:, :, :2] * 3
    return y


def put_by_mask(x: Tensor) -> Tensor:
    y = x.permute(0, 2, 3, 1).clone()
    keep = torch.ones(x.shape[0], 6, 6, dtype=torch.bool).tril()
    y[keep] = y[keep] * 2 + 1
    return y


def embedded(x: Tensor) -> Tensor:
    """Put image features among the words, as multimodal language models do."""
    rows = x.flatten(2).mT  # [batch, 36, channels]
    where = (torch.arange(36) % 3 == 0)[None, :, None].expand(x.shape[0], -1, 1)
    chosen = rows[:, :12].relu() + 1
    return rows.masked_scatter(where.expand_as(rows), chosen.to(rows.dtype))


# Channels can be cut through these. `x` is [2, 8, 6, 6].
CUT: dict[str, Expression] = {
    # look-ups
    "index_space": lambda x: x[:, :, torch.tensor([0, 3, 5])],
    "index_apart": lambda x: x[torch.tensor([0, 1]), :, torch.tensor([2, 3])].unsqueeze(0).repeat(
        2, 1, 1, 1),
    "index_side_by_side": lambda x: x[:, :, torch.tensor([0, 2]), torch.tensor([1, 5])],
    "index_table": lambda x: x.mean((2, 3)).mT[:, torch.tensor([[0, 1], [1, 0]])].permute(1, 2, 0),
    "mask_rows": lambda x: x.permute(2, 3, 0, 1)[torch.eye(6, dtype=torch.bool)].transpose(0, 1),
    "index_select": lambda x: x.index_select(2, torch.tensor([1, 1, 4])),
    "gather_space": lambda x: x.flatten(2).gather(
        2, torch.tensor([[[1, 5]]]).expand(x.shape[0], x.shape[1], 2)),
    "gather_channels_last": lambda x: x.flatten(2).mT.gather(
        1, torch.tensor([3, 1])[None, :, None].expand(2, 2, x.shape[1])),
    "gather_best": lambda x: x.flatten(2).gather(2, x.flatten(2).argmax(2, keepdim=True)),
    "take_along": lambda x: x.take_along_dim(torch.tensor([1, 2])[None, None, :, None], 2),
    "top_k_space": lambda x: x.flatten(2).topk(5, 2).values,
    "sort_space": lambda x: x.flatten(2).sort(2, descending=True).values,
    "top_rows": lambda x: x.flatten(2).mT[
        :, torch.tensor([3.0, 1.0, 2.0]).topk(2).indices],
    # writes
    "assigned": assigned,
    "assigned_into_zeros": assigned_into_zeros,
    "copied_into_views": copied_into_views,
    "viewed_then_written": viewed_then_written,
    "added_in_place": added_in_place,
    "experts": experts,
    "halves": halves,
    "partly_activated": partly_activated,
    "put": put,
    "put_by_mask": put_by_mask,
    "index_add": lambda x: x.index_add(2, torch.tensor([0, 5]), x[:, :, :2]),
    "index_copy": lambda x: x.index_copy(3, torch.tensor([2]), x[:, :, :, :1]),
    "index_fill": lambda x: x.index_fill(2, torch.tensor([2]), 0.5),
    "scatter": lambda x: x.flatten(2).scatter(
        2, torch.tensor([[[1, 5]]]).expand(x.shape[0], x.shape[1], 2), x.flatten(2)[:, :, 7:9]),
    "scatter_add": lambda x: torch.zeros_like(x.flatten(2)).scatter_add(
        2, x.flatten(2).argsort(2), x.flatten(2)),
    "scatter_value": lambda x: x.flatten(2).scatter(
        2, x.flatten(2).argmax(2, keepdim=True), 0.25),
    "masked_scatter": embedded,
    "zero_in_place": lambda x: x.clone().zero_() + x,
    "fill_view": lambda x: x.clone().index_fill_(2, torch.tensor([0]), 1.0),
    # fills
    "zeros": lambda x: x + torch.zeros(1, x.shape[1], 1, 1, dtype=x.dtype),
    "cat_zeros": lambda x: torch.cat([x, x.new_zeros(x.shape[0], x.shape[1], 1, 6)], 2),
    "cat_zeros_channels": lambda x: torch.cat([x, x.new_zeros(x.shape[0], 3, 6, 6)], 1),
    "full": lambda x: torch.full((x.shape[1],), 0.5, dtype=x.dtype)[:, None, None] * x,
    # diagonals, windows
    "triangle_space": lambda x: x.tril(),
    "diagonal_space": lambda x: x.diagonal(0, 2, 3),
    "unfold_space": lambda x: x.unfold(2, 3, 2),
    "im2col": lambda x: F.unfold(x, (2, 3)),
    "fold_back": lambda x: F.fold(F.unfold(x, 3, padding=1), (6, 6), 3, padding=1),
    "fold": lambda x: F.fold(x.flatten(2)[:, :, :9], (4, 4), 2),
    # sampling
    "grid_sample": lambda x: F.grid_sample(
        x, F.affine_grid(torch.eye(2, 3, dtype=x.dtype).expand(2, 2, 3), [2, 1, 4, 4], False),
        align_corners=False),
    "roi_align": lambda x: torchvision.ops.roi_align(x, boxes(x), (2, 2)).flatten(1)[:, None]
    .unflatten(2, (-1, 4)),
    "roi_pool": lambda x: torchvision.ops.roi_pool(x, boxes(x), (2, 2)),
    "ps_roi_align": lambda x: torchvision.ops.ps_roi_align(x, boxes(x), (2, 2)),
    "deform_conv": lambda x: torchvision.ops.deform_conv2d(
        x, torch.full((2, 8, 5, 5), 0.3, dtype=x.dtype),
        torch.ones(4, x.shape[1], 2, 2, dtype=x.dtype)),
    "max_unpool": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    "unshuffle": lambda x: F.pixel_unshuffle(F.max_pool2d(x, 3, 1, 1), 3),
    # frequencies and others
    "fft_space": lambda x: torch.fft.rfft2(x).abs(),
    "ifft_space": lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 2j, s=(6, 6)),
    "complex": lambda x: torch.view_as_real(torch.complex(x, x * 2)).flatten(3),
    "as_complex": lambda x: torch.view_as_complex(x.unflatten(3, (3, 2))).imag,
    "polar": lambda x: torch.polar(x.exp(), x).real,
    "bucketize": lambda x: torch.bucketize(x, torch.tensor([-1.0, 0, 1], dtype=x.dtype)).double(),
    "one_hot": lambda x: F.one_hot((x > 0).long(), 2).double().flatten(3),
    "meshgrid": lambda x: torch.stack([torch.meshgrid(
        y.mean((1, 2)), torch.arange(3, dtype=x.dtype), indexing="xy")[0] for y in x]),
    "cross": lambda x: torch.linalg.cross(x[..., :3], x[..., 3:]),
    "repeat_each": lambda x: x.repeat_interleave(torch.tensor([1, 0, 2, 1, 0, 1]), 2),
}  # fmt: skip

# Channels must stay behind these, or a rule would have to know what the code means.
STAY: dict[str, Expression] = {
    "written_sideways": lambda x: written_sideways(x),
    "index_channels": lambda x: x[:, torch.tensor([4, 1, 2])],
    "gather_channels": lambda x: x.gather(1, torch.tensor([4, 1])[None, :, None, None].expand(
        2, 2, 6, 6)),
    "mask_of_channels": lambda x: x.flatten(2)[:, torch.arange(8) % 3 == 0],
    "mask_of_elements": lambda x: x[x > 0].sum().expand(2, 1),
    "nonzero": lambda x: (x > 0).nonzero().double().mean(0).expand(2, 4),
    "masked_select": lambda x: x.masked_select(x > 0).sum().expand(2, 1),
    "masked_scatter_elements": lambda x: x.masked_scatter(x > 0, x.flatten() * 2),
    "write_some_channels": lambda x: write_some(x),
    "write_into_some_channels": lambda x: write_into_some(x),
    "write_constant_into_some": lambda x: x * write_constant(x),
    "scatter_channels": lambda x: torch.zeros_like(x).scatter(1, x.argsort(1), x),
    "one_hot_mean": lambda x: F.one_hot(x.mean((2, 3)).argmax(1), 8).double(),
    "tolist": lambda x: x * sum(x[0, 0].flatten().tolist()),
    "item": lambda x: x * x[0, 3, 0, 0].item(),
    "as_strided": lambda x: x.as_strided((2, 3), (1, 2)),
    "fft_channels": lambda x: torch.fft.fft(x, dim=1).abs(),
    "triangle_channels": lambda x: x.permute(0, 3, 1, 2).triu(),
    "diagonal_channels": lambda x: x.flatten(2)[:, :, :8].diagonal(0, 1, 2),
    "unfold_channels": lambda x: x.unfold(1, 3, 2),
    "histogram": lambda x: torch.histc(x.detach(), 4).expand(2, 4),
    "randn_like": lambda x: x + 0 * torch.rand_like(x),
    "cdist": lambda x: torch.cdist(x.flatten(2).mT, x.flatten(2).mT + 1),
    "searched": lambda x: torch.searchsorted(
        x.mean((2, 3)).sort(1).values, x.mean((2, 3))).double(),
    "grid_of_features": lambda x: F.grid_sample(
        x, x[:, :2].permute(0, 2, 3, 1).tanh(), align_corners=False),
    "vmap": lambda x: torch.func.vmap(lambda a: a.relu() * 2)(x),
}  # fmt: skip


def write_some(x: Tensor) -> Tensor:
    out = torch.zeros(2, 12, 6, 6, dtype=x.dtype)
    out[:, 2:10] = x
    return out


def write_into_some(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 2:5].copy_(x[:, 5:8] * 2)
    return x


def write_constant(x: Tensor) -> Tensor:
    scale = torch.ones(1, x.shape[1], 1, 1, dtype=x.dtype)
    scale[:, 5] = 3.0
    return scale


@pytest.mark.parametrize("name", sorted(CUT))
def test_channels_are_cut_and_pruned_equals_masked(name: str) -> None:
    model, image = build(CUT[name])
    for ratio in (0.5,) if name in ("fold", "ps_roi_align") else (0.25, 0.5):
        result = prunella.prune(model, image, ratio=ratio)
        kept = len(result.plan.kept["stem.0.weight"][0])
        assert CHANNELS * (1 - ratio) <= kept < CHANNELS
        assert type(result.model) is type(model), "only the graph can be cut"
        oracle.check_pruned(model, result.plan, result.model, (image,), {})
        assert result.plan.after.macs == prunella.count_macs(result.model, image)
        assert result.plan.after.params == prunella.count_params(result.model)


@pytest.mark.parametrize("name", sorted(STAY))
def test_channels_stay_with_the_operator_named_or_are_cut_rightly(name: str) -> None:
    model, image = build(STAY[name])
    check_stays_or_is_right(model, image)


class Bags(nn.Module):
    """Classifies texts by the words in them, wherever they stand."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(20, CHANNELS, mode=mode)
        self.fc = nn.Linear(CHANNELS, 3)

    def forward(self, words: Tensor, starts: Tensor | None = None) -> Tensor:
        return self.fc(self.words(words, starts))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("starts", [None, torch.tensor([0, 2])])
def test_columns_of_bags_of_words_are_cut(mode: str, starts: Tensor | None) -> None:
    torch.manual_seed(0)
    model = Bags(mode).double().eval()
    words = torch.randint(20, (3, 4) if starts is None else (5,))
    given = (words,) if starts is None else (words, starts)
    result = prunella.prune(model, given, ratio=0.5)
    assert result.model.words.weight.shape == (20, CHANNELS // 2)
    oracle.check_pruned(model, result.plan, result.model, given, {})
