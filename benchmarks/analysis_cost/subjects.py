"""The networks, and what they are judged on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from benchmarks.real_models import classifiers, data
from prunella.tasks import load

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Subject:
    """A network and its data.

    Args:
        name: As the table shows it.
        build: Returns the model.
        images: Returns the batches that the metric is measured on, and those for calibration.
        ratios: Shares of channels removed.
        samples: Numbers of calibration samples to try.
        trained: Whether the order of its groups means anything.
    """

    name: str
    build: Callable[[], nn.Module]
    images: Callable[[], tuple[Sequence[Batch], Sequence[Batch]]]
    ratios: tuple[float, ...]
    samples: tuple[int, ...]
    trained: bool = True


def _batches(images: Tensor, labels: Tensor, size: int) -> list[Batch]:
    return list(zip(images.split(size), labels.split(size), strict=True))


def _cifar() -> tuple[Sequence[Batch], Sequence[Batch]]:
    found = list(load("cifar10", depth=56, limit=1012).data("valid"))
    images, labels = (torch.cat(part) for part in zip(*found, strict=True))
    return _batches(images[:500], labels[:500], 250), _batches(images[500:], labels[500:], 64)


def _imagenet() -> tuple[Sequence[Batch], Sequence[Batch]]:
    every = 20
    judged, other = [], []
    for (pictures,), labels in classifiers.EFFICIENTNET_LITE0.test():
        judged.append((pictures[::every], labels[::every]))
        other.append((pictures[every // 2 :: every], labels[every // 2 :: every]))
    join = [[torch.cat(part) for part in zip(*found, strict=True)] for found in (judged, other)]
    return _batches(join[0][0], join[0][1], 25), _batches(join[1][0], join[1][1], 16)


def _noise() -> tuple[Sequence[Batch], Sequence[Batch]]:
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.standard_normal((64, 3, 96, 96), dtype=np.float32))
    return _batches(images, torch.arange(64), 32), _batches(images, torch.arange(64), 16)


def _mobilenet() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.mobilenet_v2().eval()


SUBJECTS = {
    "resnet56": Subject(
        "ResNet-56, 500 images of CIFAR-10",
        lambda: load("cifar10", depth=56).model(),
        _cifar,
        (0.1, 0.3, 0.5, 0.7, 0.9),
        (16, 32, 64),
    ),
    "efficientnet-lite0": Subject(
        "EfficientNet-Lite0, 50 pictures of the ImageNet sample",
        lambda: data.networks().efficientnet_lite0(),
        _imagenet,
        (0.3, 0.6, 0.9),
        (8, 16),
    ),
    "mobilenet_v2": Subject(
        "MobileNetV2 with random weights, 64 noise images of 96x96",
        _mobilenet,
        _noise,
        (0.3, 0.6, 0.9),
        (),
        trained=False,
    ),
}
