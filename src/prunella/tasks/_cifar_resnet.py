"""Residual networks for CIFAR-10: He et al. 2015, section 4.2, shortcuts without parameters."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (16, 32, 64)
CLASSES = 10


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut that has no parameters.

    Where the size changes the shortcut takes every other pixel and adds channels of zeros, half
    before and half after ("option A").
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride = 1 if inputs == outputs else 2
        self.zeros = (outputs - inputs) // 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Map `[batch, inputs, height, width]` to `[batch, outputs, height, width]` / stride."""
        hidden = F.relu(self.bn1(self.conv1(images)))
        hidden = self.bn2(self.conv2(hidden))
        if self.stride == 1:
            return F.relu(hidden + images)
        smaller = images[:, :, :: self.stride, :: self.stride]
        return F.relu(hidden + F.pad(smaller, (0, 0, 0, 0, self.zeros, self.zeros)))


class CifarResNet(nn.Module):
    """A stem, three stages of (depth - 2) / 6 blocks each, global average, one linear layer."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], blocks)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], blocks)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], blocks)
        self.linear = nn.Linear(WIDTHS[2], CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Map `[batch, 3, 32, 32]` to logits `[batch, 10]`."""
        hidden = F.relu(self.bn1(self.conv1(images)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        logits: Tensor = self.linear(torch.mean(hidden, (2, 3)))
        return logits


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(
        Block(inputs, outputs), *(Block(outputs, outputs) for _ in range(blocks - 1))
    )
