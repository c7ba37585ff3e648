"""The zoo: small models, each with one thing that makes pruning hard."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """One model of the zoo: how to build it and what to call it with."""

    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...] = ((2, 3, 8, 8),)
    kwargs: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def model(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return randomize(self.build(), seed).to(dtype).eval()

    def inputs(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(s, generator=generator, dtype=dtype) for s in self.shapes)

    def keywords(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed + 1)
        return {
            name: torch.randn(s, generator=generator, dtype=dtype)
            for name, s in self.kwargs.items()
        }


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every bias, affine and running statistic a value of its own, so that none is neutral."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                draw_norm(module, generator)
            elif isinstance(getattr(module, "bias", None), Tensor):
                module.bias.uniform_(-0.5, 0.5, generator=generator)
    return model


def draw_norm(module: nn.modules.batchnorm._BatchNorm, generator: torch.Generator) -> None:
    if module.running_mean is not None:
        module.running_mean.uniform_(-0.5, 0.5, generator=generator)
        module.running_var.uniform_(0.5, 2.0, generator=generator)
    if module.affine:
        module.weight.uniform_(0.5, 1.5, generator=generator)
        module.bias.uniform_(-0.5, 0.5, generator=generator)


def calibrate(model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """Bring running statistics near those of the data, so that deep models pass a signal on."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    drawn = [(m.running_mean.clone(), m.running_var.clone(), m.momentum) for m in norms]
    for module in norms:
        module.momentum = 1.0
    with torch.no_grad():
        model.train()(*args, **kwargs)
        for module, (mean, var, momentum) in zip(norms, drawn, strict=True):
            module.running_mean += 0.3 * mean * module.running_var.sqrt()
            module.running_var *= var
            module.momentum = momentum
    return model.eval()


def conv_norm(cin: int, cout: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    conv = nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(cout))


class Pool(nn.Module):
    """Global average pooling and flatten."""

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 1).flatten(1)


class Chain(nn.Module):
    def __init__(self, act: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.conv = nn.Conv2d(8, 12, 3, stride=2)
        self.act = act()
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(self.act(self.stem(x))))
        return self.fc(x.mean((2, 3)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.a = conv_norm(8, 6)
        self.b = conv_norm(6, 8)
        self.down = conv_norm(8, 10, stride=2)
        self.skip = conv_norm(8, 10, 1, stride=2)
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.b(F.relu(self.a(x))))
        x = F.relu(self.down(x) + self.skip(x))
        return self.fc(x.mean((2, 3)))


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv_norm(3, 4)
        self.b = conv_norm(3, 6, 5)
        self.c = conv_norm(10, 8)
        self.fc = nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([F.relu(self.a(x)), torch.sigmoid(self.b(x))], 1)
        x = torch.cat([x, F.relu(self.c(x))], 1)
        return self.fc(x.amax((2, 3)))


class Chunk(nn.Module):
    """A gated linear unit: the halves meet again by multiplication."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 12)
        self.conv = conv_norm(6, 8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, 1)
        return self.fc(F.silu(self.conv(a * torch.sigmoid(b))).mean((2, 3)))


class Split(nn.Module):
    """Uneven parts that go different ways and are joined in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 12)
        self.a = conv_norm(3, 4)
        self.b = conv_norm(4, 4)
        self.out = conv_norm(13, 6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = torch.split(F.relu(self.stem(x)), [3, 4, 5], 1)
        x = torch.cat([c, self.b(b), self.a(a)], 1)
        return self.fc(F.relu(self.out(x)).mean((2, 3)))


class Depthwise(nn.Module):
    """An inverted residual; the second depthwise convolution makes two channels of each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 6)
        self.expand = conv_norm(6, 12, 1)
        self.depth = conv_norm(12, 12, groups=12)
        self.project = conv_norm(12, 6, 1)
        self.twice = conv_norm(6, 12, groups=6)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x))
        x = x + self.project(F.relu6(self.depth(F.relu6(self.expand(x)))))
        return self.fc(F.hardswish(self.twice(x)).mean((2, 3)))


class GroupedConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 12)
        self.a = conv_norm(12, 8, groups=4)
        self.b = conv_norm(8, 12, groups=2)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + F.relu(self.b(F.relu(self.a(x))))
        return self.fc(x.mean((2, 3)))


class Shuffle(nn.Module):
    """One ShuffleNet unit: half passes by, then the channels interleave."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.branch = nn.Sequential(
            *conv_norm(4, 4, 1), nn.ReLU(), *conv_norm(4, 4, groups=4), *conv_norm(4, 4, 1)
        )
        self.last = conv_norm(8, 6, 1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for _ in range(2):
            a, b = x.chunk(2, 1)
            x = torch.cat([a, F.relu(self.branch(b))], 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


class Gate(nn.Module):
    """Squeeze and excite, with a sigmoid that is not zero at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.squeeze = nn.Conv2d(8, 4, 1)
        self.excite = nn.Conv2d(4, 8, 1)
        self.conv = conv_norm(8, 6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        return self.fc(F.relu(self.conv(x * torch.sigmoid(gate))).mean((2, 3)))


class SharedModule(nn.Module):
    """One block called twice, one head called on two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.block = conv_norm(8, 8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = F.relu(self.block(F.relu(self.block(x))))
        return self.fc(y.mean((2, 3))) + self.fc(x.mean((2, 3)))


class TiedWeights(nn.Module):
    """Two modules with one weight: an autoencoder whose decoder is the encoder transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv_norm(3, 6)
        self.encode = nn.Conv2d(6, 10, 3, padding=1)
        self.decode = nn.ConvTranspose2d(10, 6, 3, padding=1)
        self.decode.weight = self.encode.weight
        self.b = conv_norm(6, 6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.decode(F.relu(self.encode(F.relu(self.a(x)))))
        return self.fc(F.relu(self.b(x)).mean((2, 3)))


class LayerScale(nn.Module):
    """A free parameter on the channels, and one number for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.branch = conv_norm(8, 8)
        self.gamma = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.alpha = nn.Parameter(torch.tensor(0.7))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = self.alpha * x + self.gamma * F.gelu(self.branch(x))
        return self.fc(x.mean((2, 3)))


class BareParameter(nn.Module):
    """Functional calls: no module owns the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(8, 3, 3, 3) * 0.3)
        self.w2 = nn.Parameter(torch.randn(6, 8, 3, 3) * 0.2)
        self.b2 = nn.Parameter(torch.randn(6))
        self.w3 = nn.Parameter(torch.randn(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.w1, padding=1))
        x = F.relu(F.conv2d(x, self.w2, self.b2, stride=2))
        return x.mean((2, 3)) @ self.w3


class Square(nn.Module):
    """`a * a`, and a tensor added to a moved copy of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.conv = conv_norm(8, 6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.conv(x * x + x.roll(1, dims=3))
        return self.fc((x - x.abs()).mean((2, 3)))


class TwoInputs(nn.Module):
    """Two towers whose widths must agree; the second input comes by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv_norm(3, 8)
        self.b = conv_norm(1, 8)
        self.conv = conv_norm(8, 6)
        self.fc = nn.Linear(6, 5)

    def forward(self, image: Tensor, *, depth: Tensor) -> Tensor:
        x = F.relu(self.a(image)) + F.relu(self.b(depth))
        return self.fc(F.relu(self.conv(x)).mean((2, 3)))


class DictOutput(nn.Module):
    """A tap in the middle is an output: its channels must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.tap = conv_norm(8, 6)
        self.conv = conv_norm(6, 10)
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        tap = self.tap(F.relu(self.stem(x)))
        x = F.relu(self.conv(F.relu(tap)))
        return {"logits": self.fc(x.mean((2, 3))), "tap": tap}


class TupleOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.a = nn.Linear(8, 4)
        self.conv = conv_norm(8, 6)
        self.b = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = F.relu(self.stem(x))
        return self.b(F.relu(self.conv(x)).mean((2, 3))), [self.a(x.mean((2, 3)))]


@dataclass
class Prediction:
    """What `DataclassOutput` returns."""

    logits: Tensor
    features: Tensor | None = None


class DataclassOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.conv = conv_norm(8, 6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Prediction:
        x = F.relu(self.conv(F.relu(self.stem(x)))).mean((2, 3))
        return Prediction(logits=self.fc(x))


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = conv_norm(3, 8, stride=2)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.grouped = nn.ConvTranspose2d(6, 6, 3, padding=1, groups=6)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.up(F.relu(self.down(x))))
        return self.head(F.relu(self.grouped(x)))


class Signal(nn.Module):
    """One-dimensional."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(2, 8, 5, padding=2)
        self.norm = nn.BatchNorm1d(8)
        self.b = nn.Conv1d(8, 6, 3)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(F.elu(self.norm(self.a(x))), 2)
        return self.fc(torch.tanh(self.b(x)).mean(2))


class Volume(nn.Module):
    """Three-dimensional."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv3d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm3d(6)
        self.b = nn.Conv3d(6, 4, 3, padding=1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(F.relu(self.norm(self.a(x))), 2)
        return self.fc(F.relu(self.b(x)).mean((2, 3, 4)))


class Upscale(nn.Module):
    """Pixel shuffle: four channels become one."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv_norm(3, 16)
        self.shuffle = nn.PixelShuffle(2)
        self.b = conv_norm(4, 6)
        self.head = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shuffle(F.relu(self.a(x)))
        return self.head(F.relu(self.b(x)))


class Slopes(nn.Module):
    """PReLU with a slope per channel, and with one for all."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.slope = conv_norm(3, 8), nn.PReLU(8)
        self.b, self.one = conv_norm(8, 6), nn.PReLU()
        self.fc = nn.Linear(6, 5)
        with torch.no_grad():
            self.slope.weight.uniform_(0.1, 0.9)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.one(self.b(self.slope(self.a(x)))).mean((2, 3)))


class Flatten(nn.Module):
    """Every channel owns sixteen columns of the linear layer behind the flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv_norm(3, 6)
        self.a = nn.Linear(6 * 16, 10)
        self.norm = nn.BatchNorm1d(10)
        self.b = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        x = x.view(x.shape[0], -1)
        return self.b(F.relu(self.norm(self.a(F.dropout(x, 0.5, self.training)))))


class NoGradient(Chain):
    """Nothing can be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class ConvHead(nn.Module):
    """No linear layer: the last convolution's channels are the output."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv_norm(3, 8)
        self.b = conv_norm(8, 8, dilation=1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.a(x))))
        return F.interpolate(self.head(x), scale_factor=2.0, mode="bilinear")


class Constant(nn.Module):
    """Padding with zeros by a constant tensor, as ResNet's shortcut A does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 4)
        self.a = conv_norm(4, 8, stride=2)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.fc(F.relu(self.a(x) + short).mean((2, 3)))


class SpatialGate(nn.Module):
    """Statistics over the channels: pruning must not change what they mean, or must not touch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.gate = nn.Conv2d(2, 1, 3, padding=1)
        self.conv = conv_norm(8, 6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        seen = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        x = F.relu(self.conv(x * torch.sigmoid(self.gate(seen))))
        return self.fc(x.mean((2, 3)))


class SoftmaxOverChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.conv = conv_norm(8, 6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.softmax(self.stem(x), 1)
        return self.fc(F.relu(self.conv(x)).mean((2, 3)))


class Auxiliary(nn.Module):
    """A second head that only training sees, as in GoogLeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.conv = conv_norm(8, 6)
        self.aux = nn.Sequential(conv_norm(8, 4), Pool(), nn.Linear(4, 5))
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(self.stem(x))
        out = self.fc(F.relu(self.conv(x)).mean((2, 3)))
        return (out, self.aux(x)) if self.training else out


class SizeInAttribute(nn.Module):
    """The number of channels reaches `forward` through an attribute of the module."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.stem = conv_norm(3, 8)
        self.fc = nn.Linear(8 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(F.relu(self.stem(x)), 2)
        return self.fc(x.reshape(-1, self.width * 4))


class SizeInCode(nn.Module):
    """The code insists on a number of channels, where no call of the framework can tell."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x)).mean((2, 3))
        if str(x.shape[1]) != "8":
            raise ValueError("eight channels are expected")
        return self.fc(x)


class Bilinear(nn.Module):
    """Two feature maps contracted with each other, as in bilinear pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv_norm(3, 6)
        self.b = conv_norm(3, 4)
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.relu(self.a(x)).flatten(2), F.relu(self.b(x)).flatten(2)
        return self.fc((a @ b.transpose(1, 2)).flatten(1) / 64)


ZOO: dict[str, Case] = {
    "chain": Case(Chain),
    "chain_softplus": Case(lambda: Chain(nn.Softplus)),
    "residual": Case(Residual),
    "concat": Case(Concat),
    "chunk": Case(Chunk),
    "split": Case(Split),
    "depthwise": Case(Depthwise),
    "grouped_conv": Case(GroupedConv),
    "shuffle": Case(Shuffle),
    "gate": Case(Gate),
    "shared_module": Case(SharedModule),
    "tied_weights": Case(TiedWeights),
    "layer_scale": Case(LayerScale),
    "bare_parameter": Case(BareParameter),
    "square": Case(Square),
    "two_inputs": Case(TwoInputs, kwargs={"depth": (2, 1, 8, 8)}),
    "dict_output": Case(DictOutput),
    "tuple_output": Case(TupleOutput),
    "dataclass_output": Case(DataclassOutput),
    "transposed": Case(Transposed),
    "signal": Case(Signal, ((2, 2, 16),)),
    "volume": Case(Volume, ((2, 1, 4, 4, 4),)),
    "upscale": Case(Upscale),
    "slopes": Case(Slopes),
    "flatten": Case(Flatten),
    "no_gradient": Case(NoGradient),
    "conv_head": Case(ConvHead),
    "constant": Case(Constant),
    "auxiliary": Case(Auxiliary),
    "spatial_gate": Case(SpatialGate),
    "softmax_over_channels": Case(SoftmaxOverChannels),
    "size_in_attribute": Case(SizeInAttribute),
    "size_in_code": Case(SizeInCode),
    "bilinear": Case(Bilinear),
}
