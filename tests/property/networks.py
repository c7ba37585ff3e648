"""Random networks: a list of blocks drawn by Hypothesis, wired one after another.

A network is its description, a tuple of (block name, options): printing it is enough to build it
again. Every block takes and gives feature maps `[n, c, h, w]`; what varies is how channels meet.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.models import calibrate, randomize

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "softplus": F.softplus,  # not zero at zero
    "sigmoid": torch.sigmoid,  # neither
    "leaky_relu": F.leaky_relu,
}


class ConvNorm(nn.Module):
    """Convolution, batch norm and an activation."""

    def __init__(self, cin: int, cout: int, kernel: int, act: str | None, **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=cout % 2 == 0, **options)
        self.norm = nn.BatchNorm2d(cout)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return ACTIVATIONS[self.act](x) if self.act else x


@dataclass(frozen=True)
class Options:
    """What one block may use of what was drawn."""

    width: int  # channels inside or behind the block, a multiple of 4
    kernel: int
    act: str
    groups: int  # of grouped convolutions: 2 or 4
    flag: bool  # a variant of the block


class Block(nn.Module):
    """A block: `cin` channels in, `self.cout` channels out."""

    cout: int

    def __init__(self, cin: int, o: Options) -> None:
        super().__init__()
        self.o = o
        self.cout = cin
        self.make(cin, o)

    def make(self, cin: int, o: Options) -> None:
        raise NotImplementedError


class Plain(Block):
    def make(self, cin: int, o: Options) -> None:
        self.cout = o.width
        self.conv = ConvNorm(cin, o.width, o.kernel, o.act, stride=2 if o.flag else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Residual(Block):
    """With a projection on the shortcut, or without."""

    def make(self, cin: int, o: Options) -> None:
        self.cout = o.width if o.flag else cin
        self.a = ConvNorm(cin, o.width, o.kernel, o.act)
        self.b = ConvNorm(o.width, self.cout, 3, None)
        self.skip = ConvNorm(cin, self.cout, 1, None) if o.flag else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.o.act](self.skip(x) + self.b(self.a(x)))


class Concat(Block):
    """Parallel branches (inception), or the input beside what was made of it (dense net)."""

    def make(self, cin: int, o: Options) -> None:
        self.a = ConvNorm(cin, o.width, 1, o.act)
        self.b = None if o.flag else ConvNorm(cin, 6, o.kernel, "relu")
        self.cout = o.width + (cin if o.flag else 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x if self.b is None else self.b(x), self.a(x)], 1)


class Chunk(Block):
    """Halves: one gates the other, or they go different ways and change places."""

    def make(self, cin: int, o: Options) -> None:
        self.conv = ConvNorm(cin, o.width, o.kernel, None)
        self.part = ConvNorm(o.width // 2, o.width // 2, 3, o.act)
        self.cout = o.width // 2 if o.flag else o.width

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv(x).chunk(2, 1)
        if self.o.flag:
            return self.part(a) * torch.sigmoid(b)
        return torch.cat([b, self.part(a)], 1)


class Shuffle(Block):
    """Channels interleave, behind a split (ShuffleNet V2) or a grouped convolution (V1)."""

    def make(self, cin: int, o: Options) -> None:
        self.cout = o.width
        self.entry = ConvNorm(cin, o.width, 1, o.act)
        c = o.width // 2 if o.flag else o.width
        # Of one channel a row, nothing tells rows from channels in a captured graph.
        self.rows = 2 if o.flag else min(o.groups, o.width // 2)
        self.conv = ConvNorm(c, c, 1, "relu", groups=1 if o.flag else self.rows)
        self.depth = ConvNorm(c, c, 3, None, groups=c)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        if self.o.flag:
            a, b = x.chunk(2, 1)
            x = torch.cat([a, self.depth(self.conv(b))], 1)
        else:
            x = self.conv(x)
        n, c, h, w = x.shape
        x = x.view(n, self.rows, c // self.rows, h, w).transpose(1, 2).reshape(n, c, h, w)
        return x if self.o.flag else self.depth(x)


class Grouped(Block):
    """A ResNeXt bottleneck."""

    def make(self, cin: int, o: Options) -> None:
        self.a = ConvNorm(cin, o.width, 1, o.act)
        self.b = ConvNorm(o.width, o.width, 3, o.act, groups=o.groups)
        self.c = ConvNorm(o.width, cin if o.flag else o.width, 1, None)
        self.cout = cin if o.flag else o.width

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(self.b(self.a(x)))
        return F.relu(x + y) if self.o.flag else y


class Inverted(Block):
    """Expand, depthwise (with two channels of each on demand), gate, project, add."""

    def make(self, cin: int, o: Options) -> None:
        self.expand = ConvNorm(cin, o.width, 1, o.act)
        wide = o.width * (1 if o.flag else 2)
        self.depth = ConvNorm(o.width, wide, o.kernel, o.act, groups=o.width)
        self.squeeze = nn.Conv2d(wide, 4, 1)
        self.excite = nn.Conv2d(4, wide, 1)
        self.project = ConvNorm(wide, cin, 1, None)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(self.expand(x))
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1))))
        gate = F.hardsigmoid(gate) if self.o.flag else torch.sigmoid(gate)
        return x + self.project(y * gate)


class LinearGate(Block):
    """Squeeze and excite by linear layers and views."""

    def make(self, cin: int, o: Options) -> None:
        self.fc = nn.Sequential(nn.Linear(cin, 6), nn.ReLU(), nn.Linear(6, cin), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        n, c = x.shape[:2]
        y = self.fc(x.mean((2, 3)) if self.o.flag else F.adaptive_avg_pool2d(x, 1).view(n, c))
        return x * y.view(n, c, 1, 1)


class Shared(Block):
    """One convolution called twice, in a row or side by side."""

    def make(self, cin: int, o: Options) -> None:
        self.cout = o.width
        self.entry = ConvNorm(cin, o.width, 1, None)
        self.conv = ConvNorm(o.width, o.width, 3, o.act)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        if self.o.flag:
            return self.conv(self.conv(x))
        return self.conv(x) + self.conv(F.relu(x))


class Free(Block):
    """Functional calls with bare parameters, a layer scale, PReLU."""

    def make(self, cin: int, o: Options) -> None:
        self.cout = o.width
        self.weight = nn.Parameter(torch.randn(o.width, cin, 1, 1) / cin**0.5)
        self.scale = nn.Parameter(torch.rand(1, o.width, 1, 1) + 0.5)
        self.slope = nn.PReLU(o.width if o.flag else 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight)
        return self.slope(x * self.scale) + x if self.o.flag else self.slope(x) * self.scale


class Resize(Block):
    """Pixel shuffle up, then pooling down."""

    def make(self, cin: int, o: Options) -> None:
        self.conv = ConvNorm(cin, o.width, 1, o.act)
        self.up = nn.PixelShuffle(2)
        self.after = ConvNorm(o.width // 4, 6, 3, "relu")
        self.cout = 6

    def forward(self, x: Tensor) -> Tensor:
        x = self.after(self.up(self.conv(x)))
        return F.max_pool2d(x, 2) if self.o.flag else F.avg_pool2d(x, 2)


class Padded(Block):
    """ResNet's shortcut A: zeros where the shortcut has no channels."""

    def make(self, cin: int, o: Options) -> None:
        self.cout = cin + 4
        self.conv = ConvNorm(cin, cin + 4, 3, o.act)

    def forward(self, x: Tensor) -> Tensor:
        short = F.pad(x, (0, 0, 0, 0, 2, 2) if self.o.flag else (0, 0, 0, 0, 0, 4))
        return F.relu(self.conv(x) + short)


BLOCKS: tuple[type[Block], ...] = (
    Plain, Residual, Concat, Chunk, Shuffle, Grouped, Inverted, LinearGate, Shared, Free, Resize,
    Padded,
)  # fmt: skip
HEADS = ("linear", "flatten", "conv", "dict", "tuple")

Description = tuple[tuple[tuple[str, Options], ...], str, int]


class Network(nn.Module):
    """A stem, the blocks, and a head; `dict` and `tuple` heads have a second output midway."""

    def __init__(self, blocks: tuple[tuple[str, Options], ...], head: str) -> None:
        super().__init__()
        by_name = {block.__name__: block for block in BLOCKS}
        self.stem = ConvNorm(3, 8, 3, "relu")
        made: list[Block] = []
        c = 8
        for name, options in blocks:
            made.append(by_name[name](c, options))
            c = made[-1].cout
            if len(made) == (len(blocks) + 1) // 2:
                middle = c
        self.blocks = nn.ModuleList(made)
        self.head = head
        if head == "conv":
            self.out: nn.Module = nn.Conv2d(c, 3, 1)
        else:
            self.out = nn.Linear(c * 4 if head == "flatten" else c, 5)
        self.aux = nn.Linear(middle, 2) if head in ("dict", "tuple") else None

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        for number, block in enumerate(self.blocks, start=1):
            x = block(x)
            if number == (len(self.blocks) + 1) // 2:
                middle = x
        if self.head == "conv":
            return self.out(x)
        if self.head == "flatten":
            return self.out(torch.flatten(F.adaptive_avg_pool2d(x, 2), 1))
        out = self.out(x.mean((2, 3)))
        if self.aux is None:
            return out
        aux = self.aux(F.adaptive_max_pool2d(middle, 1).flatten(1))
        return {"out": out, "aux": aux} if self.head == "dict" else (out, (aux, middle.sum()))


def build(description: Description) -> nn.Module:
    """Build the network, every tensor random, float64."""
    blocks, head, seed = description
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = randomize(Network(blocks, head), seed).double()
        return calibrate(model, images(seed, 4))


def images(seed: int, samples: int = 2) -> Tensor:
    """Draw inputs that differ in more than noise: each has a mean and a contrast of its own."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return draw(samples, 3, 8, 8) * draw(samples, 1, 1, 1) + draw(samples, 3, 1, 1)


def describe(seed: int, most: int = 5) -> Description:
    """Draw a network from a seed alone: spread evenly, where Hypothesis likes what is small."""
    draw = random.Random(seed)
    blocks = []
    for _ in range(draw.randint(1, most)):
        options = Options(
            width=draw.choice((4, 8, 12)),
            kernel=draw.choice((1, 3)),
            act=draw.choice(sorted(ACTIVATIONS)),
            groups=draw.choice((2, 4)),
            flag=draw.random() < 0.5,
        )
        blocks.append((draw.choice(BLOCKS).__name__, options))
    return tuple(blocks), draw.choice(HEADS), seed


options = st.builds(
    Options,
    width=st.sampled_from((4, 8, 12)),
    kernel=st.sampled_from((1, 3)),
    act=st.sampled_from(sorted(ACTIVATIONS)),
    groups=st.sampled_from((2, 4)),
    flag=st.booleans(),
)


def descriptions(most: int = 4) -> st.SearchStrategy[Description]:
    """Draw networks of up to `most` blocks."""
    block = st.tuples(st.sampled_from([block.__name__ for block in BLOCKS]), options)
    return st.tuples(
        st.lists(block, min_size=1, max_size=most).map(tuple),
        st.sampled_from(HEADS),
        st.integers(0, 2**16),
    )
