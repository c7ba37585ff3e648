"""The networks, and what they are judged on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.analysis_cost import dogs
from prunella.tasks import load

Batch = tuple[Tensor, Tensor]
Images = tuple[Sequence[Batch], Sequence[Batch]]


@dataclass(frozen=True)
class Subject:
    """A network and its data.

    Args:
        name: As the table shows it.
        build: Returns the model.
        images: Returns the batches that the metric is measured on, and those for calibration; given
            the model.
        ratios: Shares of channels removed.
        samples: Numbers of calibration samples to try.
        bf16: Whether all forward passes run under autocast to bfloat16.
    """

    name: str
    build: Callable[[], nn.Module]
    images: Callable[[nn.Module], Images]
    ratios: tuple[float, ...]
    samples: tuple[int, ...]
    bf16: bool = False


def _batches(images: Tensor, labels: Tensor, size: int) -> list[Batch]:
    return list(zip(images.split(size), labels.split(size), strict=True))


_JUDGED = 5_000
"""Of the test images; the others are for calibration."""


def _resnet(depth: int) -> nn.Module:
    return load("cifar10", depth=depth).model().to(memory_format=torch.channels_last)


def _cifar(_: nn.Module) -> Images:
    found = load("cifar10", depth=56, held_out="train").data("test")
    images, labels = (torch.cat(part) for part in zip(*found, strict=True))
    images = images.contiguous(memory_format=torch.channels_last)
    judged = _batches(images[:_JUDGED], labels[:_JUDGED], 250)
    return judged, _batches(images[_JUDGED:], labels[_JUDGED:], 64)


_ANIMALS = 398
"""The first so many classes of ImageNet are animals."""


@torch.no_grad()
def _animals(model: nn.Module) -> Images:
    pictures = dogs.pictures()[:_ANIMALS]
    labels = torch.cat([model(part).argmax(1) for part in pictures.split(64)])
    aside = torch.arange(_ANIMALS) % 5 == 0
    judged = _batches(pictures[~aside][:64], labels[~aside][:64], 64)
    return judged, _batches(pictures[aside], labels[aside], 16)


SUBJECTS = {
    "resnet56": Subject(
        "ResNet-56, 5,000 test images of CIFAR-10",
        partial(_resnet, 56),
        _cifar,
        (0.1, 0.3, 0.5, 0.7, 0.9),
        (64, 128, 256, 512),
        bf16=True,
    ),
    "resnet20": Subject(
        "ResNet-20, 5,000 test images of CIFAR-10",
        partial(_resnet, 20),
        _cifar,
        (0.1, 0.3, 0.5, 0.7, 0.9),
        (128, 256),
        bf16=True,
    ),
    "mobilenet_v2": Subject(
        "MobileNetV2, 64 pictures of animals",
        dogs.mobilenet_v2,
        _animals,
        (0.1, 0.3, 0.5, 0.7, 0.9),
        (4, 6, 8),
    ),
}
