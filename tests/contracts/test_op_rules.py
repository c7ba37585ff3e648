"""What every operator rule owes: the channels behind it are cut rightly, or stay and say why.

Each case is one expression between a convolution and a linear layer over everything it gives.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunella
from prunella.errors import NothingToPruneError
from tests import oracle
from tests.coupling import check_stays_or_is_right
from tests.models import conv_norm, randomize

Expression = Callable[[Tensor], Tensor]
CHANNELS = 8

# Channels can be cut through these. `x` is [2, 8, 6, 6].
CUT: dict[str, Expression] = {
    # element by element
    "relu_": lambda x: x.relu_(),
    "add": lambda x: x + 1,
    "add_itself": lambda x: x + x.flip(3),
    "add_scaled": lambda x: torch.add(x, x, alpha=2),
    "rsub": lambda x: 1 - x,
    "reciprocal": lambda x: 1 / (1 + x * x),
    "pow": lambda x: x**2,
    "power_of_two": lambda x: 2.0**x,
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "maximum": lambda x: torch.maximum(x, x * 2),
    "where": lambda x: torch.where(x > 0, x, x * 0.1),
    "where_scalar": lambda x: torch.where(x > 0, x, 0.0),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0.0),
    "lerp": lambda x: torch.lerp(x, x.sigmoid(), 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x, value=0.5),
    "in_place": lambda x: x.mul_(2).add_(x),
    "mish": F.mish,
    "clip": lambda x: torch.clip(x, -0.5, 0.5),
    "clip_below": lambda x: x.clip(min=-x.sigmoid()),
    "expit": lambda x: torch.special.expit(x),
    "log_add_exp": lambda x: torch.logaddexp(x, -x),
    "float_power": lambda x: torch.float_power(x.sigmoid(), 2),
    "less": lambda x: x * torch.less(x, 0.2),
    "exclusive_or": lambda x: x * ((x > 0) ^ (x > 0.5)),
    "arctan2": lambda x: torch.arctan2(x, x * x + 1),
    "broadcast_tensors": lambda x: torch.mul(
        *torch.broadcast_tensors(x, x.mean((2, 3), keepdim=True))
    ),
    "error_of_each": lambda x: F.mse_loss(x, x.sigmoid(), reduction="none"),
    "huber_of_each": lambda x: F.huber_loss(x, x.relu(), reduction="none", delta=0.1),
    "elu": F.elu,
    "hardtanh": F.hardtanh,
    "glu_by_hand": lambda x: x * x.sigmoid(),
    "log_exp": lambda x: x.exp().add(1).log(),
    "threshold": lambda x: F.threshold(x, 0.1, 2.0),
    "dropout": lambda x: F.dropout(x, 0.5, False),
    "zeros_like": lambda x: x + torch.zeros_like(x),
    "ones": lambda x: x * torch.ones(1, x.shape[1], 1, 1, dtype=x.dtype),
    "to": lambda x: x.to(torch.float32).to(x.dtype),
    "detach_clone": lambda x: x.detach().clone().contiguous(),
    "constant_over_space": lambda x: x * torch.linspace(0, 1, 6, dtype=x.dtype),
    # movement
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose_twice": lambda x: x.transpose(1, 3).transpose(1, 3),
    "unsqueeze": lambda x: x.unsqueeze(1).squeeze(1),
    "view_space": lambda x: x.view(x.shape[0], x.shape[1], -1),
    "flatten_unflatten": lambda x: x.flatten(2).unflatten(2, (6, 6)),
    "cat_itself": lambda x: torch.cat([x, x.relu()], 1),
    "cat_space": lambda x: torch.cat([x, x * 2], 3),
    "cat_zeros_space": lambda x: torch.cat([x, torch.zeros_like(x)], 2),
    "hstack": lambda x: torch.hstack([x, x.relu()]),
    "dstack_space": lambda x: torch.dstack([x, x.relu()]),
    "column_stack": lambda x: torch.column_stack([x.mean((2, 3)), x.amax((2, 3))]),
    "vstack_then_mean": lambda x: torch.vstack([x, x.relu()]).unflatten(0, (2, -1)).mean(0),
    "moveaxis": lambda x: torch.moveaxis(x, 1, 3),
    "flip_rows": lambda x: torch.flipud(x).flipud(),
    "ravel": lambda x: torch.stack([row.ravel() for row in x.unbind(0)]),
    "convolve_after_swapping": lambda x: point_by_point(x),
    "stack": lambda x: torch.stack([x, x.relu()], 1),
    "stack_last": lambda x: torch.stack([x, x.relu()], -1),
    "stack_interleave": lambda x: torch.stack([x, x.relu()], 2).flatten(1, 2),
    "chunk_add": lambda x: torch.add(*x.chunk(2, 1)),
    "hsplit_add": lambda x: torch.add(*x.hsplit(2)),
    "hsplit_add_of_vectors": lambda x: torch.stack([sum(v.hsplit(2)) for v in x[:, :, 0, 0]]),
    "dsplit_space": lambda x: torch.cat(x.dsplit((1,)), 2),
    "vsplit_batch": lambda x: torch.cat(x.vsplit(2)[::-1]),
    "chunk_cat": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "tensor_split_space": lambda x: torch.cat(x.tensor_split((1,), 2), 2),
    "split_space": lambda x: torch.cat(x.split(3, 2), 1),
    "unbind_space": lambda x: x.unbind(2)[0] + x.unbind(2)[3],
    "select_space": lambda x: x[:, :, 2],
    "slice_space": lambda x: x[:, :, ::2, 1:-1],
    "focus": lambda x: torch.cat([x[..., ::2, ::2], x[..., 1::2, 1::2]], 1),
    "expand": lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 3, 3),
    "repeat_space": lambda x: x.repeat(1, 1, 2, 1),
    "repeat_channels": lambda x: x.repeat(1, 2, 1, 1),
    "repeat_interleave_space": lambda x: x.repeat_interleave(2, 3),
    "roll_space": lambda x: x.roll((1, 2), (2, 3)),
    "flip_space": lambda x: x.flip(2, 3),
    "pad_space": lambda x: F.pad(x, (1, 2, 0, 1)),
    "pad_channels": lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)),
    "pad_reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "pad_replicate": lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
    "mean_of_blocks": lambda x: x.reshape(x.shape[0], 2, -1, 6, 6).mean(1),
    "transpose_matrix": lambda x: x.flatten(2).mT,
    # windows
    "max_pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max_pool_indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "avg_pool": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "lp_pool": lambda x: F.lp_pool2d(x, 2, 2),
    "adaptive_max": lambda x: F.adaptive_max_pool2d(x, 2),
    "upsample_nearest": lambda x: F.interpolate(x, scale_factor=2),
    "upsample_bicubic": lambda x: F.interpolate(x, size=(4, 5), mode="bicubic"),
    "upsample_bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    # reductions
    "mean_space": lambda x: x.mean((2, 3)),
    "amax_space": lambda x: x.amax((2, 3)),
    "max_space": lambda x: x.flatten(2).max(2).values,
    "std_space": lambda x: x.std((2, 3)),
    "norm_space": lambda x: x.norm(dim=(2, 3)),
    "softmax_space": lambda x: x.flatten(2).softmax(2),
    "cumsum_space": lambda x: x.cumsum(2),
    "logsumexp_space": lambda x: x.logsumexp((2, 3)),
    "instance_norm": lambda x: F.instance_norm(x),
    # products
    "gram": lambda x: x.flatten(2).mT @ x.flatten(2),
    "attention_over_space": lambda x: x.flatten(2) @ (x.flatten(2).mT @ x.flatten(2)).softmax(2),
    "einsum_space": lambda x: torch.einsum("nchw,nchw->nc", x, x),
    "depthwise_constant": lambda x: x * x.mean((2, 3), keepdim=True),
}

# Channels must stay behind these, or a rule would have to know what the code means.
STAY: dict[str, Expression] = {
    "softmax": lambda x: x.softmax(1),
    "amax": lambda x: x.amax(1),
    "normalize": lambda x: F.normalize(x.flatten(1)),
    "argmax": lambda x: x.argmax(1).double(),
    "sort": lambda x: x.sort(1).values,
    "cumsum": lambda x: x.cumsum(1),
    "roll": lambda x: x.roll(1, 1),
    "flip": lambda x: x.flip(1),
    "flip_columns": lambda x: torch.fliplr(x),
    "error": lambda x: x * F.mse_loss(x, x.sigmoid()),
    "pairwise": lambda x: F.pairwise_distance(x.mean((2, 3)), x.amax((2, 3)), keepdim=True),
    "convolve_along": lambda x: along_channels(x),
    "take_first": lambda x: x[:, 0],
    "constant": lambda x: x + torch.linspace(0, 1, 8, dtype=x.dtype)[:, None, None],
    "index": lambda x: x[:, [3, 1, 2]],
    "outer": lambda x: x.mean((2, 3)).unsqueeze(2) * x.mean((2, 3)).unsqueeze(1),
    "assign": lambda x: assign(x),
    "add_to_slice": lambda x: add_to_slice(x),
    "group_norm": lambda x: F.group_norm(x, 2),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[1:]),
    "local_response": lambda x: F.local_response_norm(x, 3),
    "top_k": lambda x: x.topk(3, 1).values,
    "fft": lambda x: torch.fft.rfft(x, dim=1).abs(),
}


def point_by_point(x: Tensor) -> Tensor:
    """Mix the positions of an image by a convolution that is one wide, as a gated MLP does."""
    mixing = torch.linspace(-1, 1, 36 * 5, dtype=x.dtype).reshape(5, 36, 1).cos()
    return F.conv1d(x.flatten(2).mT, mixing).mT


def along_channels(x: Tensor) -> Tensor:
    """The same, where it is not as simple: neighbours, every other, or something around them."""
    tokens = x.flatten(2).mT[:, :3]
    one, wide = torch.ones(3, 3, 1, dtype=x.dtype), torch.ones(3, 3, 3, dtype=x.dtype)
    made = [
        F.conv1d(tokens, wide, padding=1), F.conv1d(tokens, one, stride=2),
        F.conv1d(tokens, one, padding=1),
    ]  # fmt: skip
    return torch.cat(made, 2)


def assign(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :3] = 0.5
    return x


def add_to_slice(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 2:5] += 1
    return x


class Between(nn.Module):
    def __init__(self, expression: Expression) -> None:
        super().__init__()
        self.expression = expression
        self.stem = conv_norm(3, CHANNELS)
        with torch.no_grad():
            made = expression(torch.randn(2, CHANNELS, 6, 6).double())
        self.fc = nn.Linear(made[0].numel(), 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.expression(self.stem(x)).flatten(1))


def build(expression: Expression) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = randomize(Between(expression)).double().eval()
    return model, torch.randn(2, 3, 6, 6, dtype=torch.float64)


@pytest.mark.parametrize("name", sorted(CUT))
def test_channels_are_cut_and_pruned_equals_masked(name: str) -> None:
    model, image = build(CUT[name])
    for ratio in (0.25, 0.5) if name != "pixel_shuffle" else (0.5,):  # of eight, four go at once
        result = prunella.prune(model, image, ratio=ratio)
        kept = len(result.plan.kept["stem.0.weight"][0])
        assert CHANNELS * (1 - ratio) <= kept < CHANNELS
        oracle.check_pruned(model, result.plan, result.model, (image,), {})
        assert result.plan.after.macs == prunella.count_macs(result.model, image)
        assert result.plan.after.params == prunella.count_params(result.model)
        assert result.plan.before.macs == prunella.count_macs(model, image)


@pytest.mark.parametrize("name", sorted(STAY))
def test_channels_stay_with_the_operator_named_or_are_cut_rightly(name: str) -> None:
    model, image = build(STAY[name])
    check_stays_or_is_right(model, image)


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("end", [Tensor.max, Tensor.min])
def test_the_end_of_a_whole_tensor_is_that_of_the_channels_kept(
    end: Expression, calibrated: bool
) -> None:
    sign = -1 if end is Tensor.max else 1  # so that a channel that is zero would be it
    model, image = build(lambda x: x / end(sign * (x.abs() + 0.1)))
    data = [image] if calibrated else None
    result = prunella.prune(model, image, ratio=0.5, calibration=data)
    assert result.plan.marked


def test_a_literal_number_of_channels_freezes_them_and_shows_the_line() -> None:
    model, image = build(lambda x: x.reshape(x.shape[0], 2, 4, 6, 6).mean(1))
    with pytest.raises(NothingToPruneError, match=r"x\.reshape\(x\.shape\[0\], 2, 4, 6, 6\)"):
        prunella.prune(model, image, ratio=0.5, form="class")


def test_an_operator_without_a_rule_freezes_what_it_touches_and_says_so() -> None:
    model, image = build(lambda x: torch.special.zeta(x.sigmoid() + 2, 1.5))
    with pytest.raises(NothingToPruneError, match=r"no rule \(`aten\.special_zeta"):
        prunella.prune(model, image, ratio=0.5)
