"""One attention, in many ways to write it, for the tests of heads and of positions inside them."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunella
from tests.models import randomize

WIDTH, HEADS, SIZE = 16, 4, 4  # of the stream; heads; positions in a head

Attend = Callable[["Attention", Tensor, Tensor, Tensor], Tensor]


def fused(self: "Attention", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=k.shape[1] != q.shape[1])


def by_hand(self: "Attention", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    times = q.shape[1] // k.shape[1]
    if times > 1:  # as transformers repeats them
        n, heads, length, size = k.shape
        wide = (n, heads, times, length, size)
        k = k[:, :, None].expand(wide).reshape(n, heads * times, length, size)
        v = v[:, :, None].expand(wide).reshape(n, heads * times, length, size)
    return (q @ k.transpose(-2, -1) / SIZE**0.5).softmax(-1) @ v


def by_einsum(self: "Attention", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / SIZE**0.5
    return torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)


def by_batches(self: "Attention", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    n, heads = q.shape[:2]
    q, k, v = (a.reshape(n * heads, a.shape[2], a.shape[3]) for a in (q, k, v))
    zero = torch.zeros(1, 1, 1, dtype=q.dtype)
    scores = torch.baddbmm(zero, q, k.transpose(1, 2), beta=0, alpha=SIZE**-0.5)
    out = torch.bmm(scores.softmax(-1), v)
    return out.reshape(n, heads, out.shape[1], out.shape[2])


def biased(self: "Attention", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=self.per_head.view(1, -1, 1, 1))


def gated(self: "Attention", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A scale of its own for every head."""
    return fused(self, q * self.per_head.view(1, -1, 1, 1), k, v)


def cosine(self: "Attention", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * self.per_head.view(1, -1, 1, 1)
    return scores.softmax(-1) @ v


def across(self: "Attention", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention between the positions of a head, not of the sequence (XCiT)."""
    return ((q.mT @ k).softmax(-1) @ v.mT).mT


def linear(self: "Attention", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = F.elu(q) + 1, F.elu(k) + 1
    return q @ (k.mT @ v) / (q * k.sum(2, keepdim=True)).sum(-1, keepdim=True)


def rotary(self: "Attention", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    angles = torch.outer(torch.arange(q.shape[2], dtype=q.dtype), self.frequencies)
    angles = torch.cat((angles, angles), -1)
    q, k = (a * angles.cos() + turned(a) * angles.sin() for a in (q, k))
    return fused(self, q, k, v)


def turned(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), -1)


def shifted(self: "Attention", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A bias that all heads share."""
    return fused(self, q + self.per_position, k, v)


def projected(self: "Attention", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A linear layer that all heads share."""
    return fused(self, self.inner(q), k, v)


def normed(self: "Attention", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return fused(self, self.norm(q), k, v)


def shaped(self: "Attention", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries are asked for their shape as well, which takes no factor with it."""
    return fused(self, q, k.expand_as(q), v) + torch.zeros_like(q)


def pooled(self: "Attention", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries go on beside what they found (MViT): a factor in them would show there."""
    return (q @ k.mT * self.scale).softmax(-1) @ v + q


def placed(self: "Attention", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries meet a table too, without the scale of keys."""
    table = self.table[: k.shape[2]]
    scores = q @ k.mT * self.scale + torch.einsum("bhid,jd->bhij", q, table)
    return scores.softmax(-1) @ v


class Attention(nn.Module):
    """A stream, one attention on it, and a classifier of every token."""

    def __init__(self, attend: Attend, keys: int = HEADS) -> None:
        super().__init__()
        self.attend = attend
        self.stem = nn.Linear(5, WIDTH)
        self.q = nn.Linear(WIDTH, HEADS * SIZE)
        self.k = nn.Linear(WIDTH, keys * SIZE)
        self.v = nn.Linear(WIDTH, keys * SIZE)
        self.out = nn.Linear(HEADS * SIZE, WIDTH)
        self.head = nn.Linear(WIDTH, 3)
        if attend in (biased, gated, cosine):
            self.per_head = nn.Parameter(torch.rand(HEADS) + 0.5)
        if attend is shifted:
            self.per_position = nn.Parameter(torch.randn(SIZE))
        if attend is projected:
            self.inner = nn.Linear(SIZE, SIZE)
        if attend is normed:
            self.norm = nn.LayerNorm(SIZE)
        if attend in (pooled, placed):
            self.scale = SIZE**-0.5
        if attend is placed:
            self.table = nn.Parameter(torch.randn(16, SIZE))
        if attend is rotary:
            self.register_buffer("frequencies", torch.rand(SIZE // 2) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        n, length = x.shape[:2]
        q, k, v = (
            part(x).view(n, length, -1, SIZE).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        y = self.attend(self, q, k, v).transpose(1, 2).reshape(n, length, -1)
        return self.head(x + self.out(y))


def ready(model: nn.Module) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return randomize(model).double().eval()


def tokens(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 6, 5)), generator=torch.Generator().manual_seed(3)).double()


def owner(groups: prunella.Groups, tensor: str, dim: int = 0) -> prunella.plan.Group:
    axis = prunella.Axis(tensor, dim)
    (found,) = (group for group in (*groups, *groups.frozen) if axis in group.axes)
    return found


def check_costs(model: nn.Module, result: Any, *inputs: Tensor) -> None:
    assert result.plan.before.macs == prunella.count_macs(model, inputs)
    assert result.plan.after.macs == prunella.count_macs(result.model, inputs)
