"""The networks, and what they are judged on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    """

    name: str
    build: Callable[[], nn.Module]
    images: Callable[[nn.Module], Images]
    ratios: tuple[float, ...]
    samples: tuple[int, ...]


def _batches(images: Tensor, labels: Tensor, size: int) -> list[Batch]:
    return list(zip(images.split(size), labels.split(size), strict=True))


def _cifar(_: nn.Module) -> Images:
    task = load("cifar10", depth=56, limit=600)
    judged, other = (
        [torch.cat(part) for part in zip(*task.data(split), strict=True)]
        for split in ("test", "valid")
    )
    return _batches(judged[0], judged[1], 200), _batches(other[0], other[1], 64)


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
        "ResNet-56, 600 test images of CIFAR-10",
        lambda: load("cifar10", depth=56).model(),
        _cifar,
        (0.1, 0.3, 0.5, 0.7, 0.9),
        (32, 64, 128),
    ),
    "mobilenet_v2": Subject(
        "MobileNetV2, 64 pictures of animals",
        dogs.mobilenet_v2,
        _animals,
        (0.1, 0.3, 0.5, 0.7, 0.9),
        (4, 8),
    ),
}
