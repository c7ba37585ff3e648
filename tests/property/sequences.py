"""Random networks over sequences: attention, norms, windows, embeddings, gates, recurrence.

As in `networks.py`, a network is its description. Every block takes and gives a stream
`[n, length, width]`; what varies is who reads it and how heads are laid out.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 4  # of the grid that the tokens form, in windows of half the side
TOKENS = 11  # of the vocabulary


class Root(nn.Module):
    """A root mean square norm, written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Grouped(nn.GroupNorm):
    """A group norm over the channels of a sequence."""

    def __init__(self, width: int) -> None:
        super().__init__(2, width)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer": nn.LayerNorm,
    "root": Root,
    "group": Grouped,
    "none": lambda _: nn.Identity(),
}


@dataclass(frozen=True)
class Options:
    """What one block may use of what was drawn."""

    norm: str
    heads: int
    keys: int  # heads of keys and values, where they may be fewer
    size: int  # positions of a head
    flag: bool  # a variant of the block
    scale: bool  # whether a layer scale follows
    post: bool  # whether the norm stands behind the sum


class Attention(nn.Module):
    """What all layouts share: the product, by hand or fused."""

    def __init__(self, width: int, o: Options) -> None:
        super().__init__()
        self.o = o
        self.num_heads, self.head_dim = o.heads, o.size
        self.make(width, o)

    def make(self, width: int, o: Options) -> None:
        raise NotImplementedError

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.o.flag:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            y = (scores if bias is None else scores + bias).softmax(-1) @ v
        return y.transpose(1, 2).flatten(2)


class Fused(Attention):
    """One linear layer for queries, keys and values, cut by a view."""

    def make(self, width: int, o: Options) -> None:
        self.qkv = nn.Linear(width, 3 * o.heads * o.size)
        self.out = nn.Linear(o.heads * o.size, width)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        n, length, _ = x.shape
        qkv = self.qkv(x).view(n, length, 3, self.num_heads, self.head_dim)
        return self.out(self.attend(*qkv.permute(2, 0, 3, 1, 4).unbind(0), bias))


class Windows(Fused):
    """Attention within windows that are shifted, with a table of relative positions."""

    def make(self, width: int, o: Options) -> None:
        super().make(width, o)
        side = SIDE // 2
        self.table = nn.Parameter(torch.randn((2 * side - 1) ** 2, o.heads))
        at = torch.cartesian_prod(torch.arange(side), torch.arange(side))
        apart = at[:, None] - at[None] + side - 1
        self.register_buffer("index", apart[..., 0] * (2 * side - 1) + apart[..., 1])

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        n, length, width = x.shape
        side = SIDE // 2
        x = x.view(n, SIDE, SIDE, width).roll((-1, -1), (1, 2))
        x = x.view(n, 2, side, 2, side, width).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(-1, side * side, width)
        bias = self.table[self.index.view(-1)].view(side * side, side * side, -1)
        x = super().forward(x, bias.permute(2, 0, 1).unsqueeze(0))
        x = x.view(n, 2, 2, side, side, -1).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(n, SIDE, SIDE, -1).roll((1, 1), (1, 2)).reshape(n, length, -1)


class Apart(Attention):
    """Projections of their own; fewer heads of keys and values than of queries, or one."""

    def make(self, width: int, o: Options) -> None:
        self.q = nn.Linear(width, o.heads * o.size)
        self.k = nn.Linear(width, o.keys * o.size, bias=False)
        self.v = nn.Linear(width, o.keys * o.size)
        self.out = nn.Linear(o.heads * o.size, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = (
            part(x).view(n, length, -1, self.head_dim).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        if self.o.keys > 1:
            times = self.o.heads // self.o.keys
            k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        return self.out(self.attend(q, k.expand_as(q), v.expand_as(q)))


class Torchs(Attention):
    """`torch.nn.MultiheadAttention`."""

    def make(self, width: int, o: Options) -> None:
        self.inner = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=self.o.flag)[0]


class Plain(nn.Module):
    def __init__(self, width: int, o: Options) -> None:
        super().__init__()
        self.up = nn.Linear(width, o.heads * 4)
        self.inner = NORMS[o.norm](o.heads * 4) if o.flag else nn.Identity()
        self.down = nn.Linear(o.heads * 4, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.inner(F.gelu(self.up(x))))


class Gated(nn.Module):
    """A gated linear unit: halves of one layer, or two layers."""

    def __init__(self, width: int, o: Options) -> None:
        super().__init__()
        self.halves = o.flag
        self.up = nn.Linear(width, o.heads * 4 * (2 if o.flag else 1))
        self.gate = None if o.flag else nn.Linear(width, o.heads * 4, bias=False)
        self.down = nn.Linear(o.heads * 4, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            a, b = self.up(x).chunk(2, -1)
            return self.down(a * F.silu(b))
        return self.down(self.up(x) * F.silu(self.gate(x)))


class Mixer(nn.Module):
    """A depthwise convolution along the sequence, between two linear layers."""

    def __init__(self, width: int, o: Options) -> None:
        super().__init__()
        self.enter = nn.Linear(width, o.heads * 4)
        self.depth = nn.Conv1d(o.heads * 4, o.heads * 4, 3, padding=1, groups=o.heads * 4)
        self.inner = nn.GroupNorm(2, o.heads * 4) if o.flag else nn.Identity()
        self.leave = nn.Linear(o.heads * 4, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(self.depth(self.enter(x).transpose(1, 2)))
        return self.leave(F.silu(x).transpose(1, 2))


class Recurrent(nn.Module):
    def __init__(self, width: int, o: Options) -> None:
        super().__init__()
        self.cells = nn.LSTM(width, 6, batch_first=True, bidirectional=o.flag)
        self.leave = nn.Linear(12 if o.flag else 6, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.cells(x)[0])


PARTS: tuple[type[nn.Module], ...] = (
    Fused, Windows, Apart, Apart, Torchs, Plain, Gated, Mixer, Recurrent,
)  # fmt: skip
HEADS = ("tied", "mean", "first")

Description = tuple[tuple[tuple[str, Options], ...], str, int, int]


class Block(nn.Module):
    """Norm, part, layer scale and the sum; or the norm behind it."""

    def __init__(self, width: int, kind: str, o: Options) -> None:
        super().__init__()
        by_name = {part.__name__: part for part in PARTS}
        self.norm = NORMS[o.norm](width)
        self.part = by_name[kind](width, o)
        self.scale = nn.Parameter(torch.rand(width) + 0.5) if o.scale else None
        self.post = o.post

    def forward(self, x: Tensor) -> Tensor:
        y = self.part(x if self.post else self.norm(x))
        if self.scale is not None:
            y = y * self.scale
        return self.norm(x + y) if self.post else x + y


class Network(nn.Module):
    """Token and position embeddings, the blocks, a norm, and a head that may be the embedding."""

    def __init__(self, blocks: tuple[tuple[str, Options], ...], head: str, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, width)
        self.positions = nn.Parameter(torch.randn(1, SIDE * SIDE, width) * 0.5)
        self.blocks = nn.ModuleList(Block(width, kind, options) for kind, options in blocks)
        self.norm = NORMS[blocks[-1][1].norm](width)
        self.head = head
        self.out = nn.Linear(width, TOKENS, bias=False)
        if head == "tied":
            self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Any:
        x = self.embed(ids) + self.positions
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if self.head == "first":
            x = x[:, 0]
        return self.out(x.mean(1) if self.head == "mean" else x)


def describe(seed: int, most: int = 3) -> Description:
    """Draw a network from a seed alone."""
    draw = random.Random(seed)
    blocks = []
    for _ in range(draw.randint(1, most)):
        options = Options(
            norm=draw.choice(("layer", "layer", "root", "group", "none")),
            heads=draw.choice((2, 4)),
            keys=draw.choice((1, 2)),
            size=draw.choice((2, 4)),
            flag=draw.random() < 0.5,
            scale=draw.random() < 0.3,
            post=draw.random() < 0.3,
        )
        blocks.append((draw.choice(PARTS).__name__, options))
    return tuple(blocks), draw.choice(HEADS), draw.choice((8, 12)), seed


def build(description: Description) -> nn.Module:
    """Build the network in float64, with no weight, bias or scale at a neutral value."""
    blocks, head, width, seed = description
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Network(blocks, head, width).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def ids(seed: int, samples: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, TOKENS, (samples, SIDE * SIDE), generator=generator)
