"""A network with its calibration images, and how every method is measured on it."""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunella
from prunella.tasks import Task
from prunella.tasks.cifar10 import MEAN, STD, HeldOut
from prunella.tasks.cifar10 import task as cifar10

DEPTHS = {"ResNet-20": 20, "ResNet-56": 56}
BATCH = 256
PAD = 4


@dataclass(frozen=True, eq=False)
class Case:
    """What a method is given.

    Attributes:
        network: Its name.
        dense: The network to prune; to be left untouched.
        example: One input.
        images: For calibration, `[count, 3, 32, 32]`, normalised.
        labels: Of these images, for methods that need them.
        seed: Says which images, and decides what else is random.
        budgets: Percent of the MACs to remove, ascending.
    """

    network: str
    dense: nn.Module
    example: Tensor
    images: Tensor
    labels: Tensor
    seed: int
    budgets: tuple[float, ...]

    def share(self, removed: float) -> float:
        """Return the share of the MACs that may remain."""
        return (100 - removed) / 100

    def limit(self, removed: float) -> int:
        """Return how many MACs may remain."""
        return int(self.share(removed) * prunella.count_macs(self.dense, self.example))

    def batches(self) -> list[Tensor]:
        """Return the calibration images in batches."""
        return list(self.images.split(BATCH))


Pruned = tuple[float, nn.Module]
"""Percent of the MACs that were to be removed, and what remains."""


@dataclass(frozen=True)
class Method:
    """One row of the tables.

    Attributes:
        tool: Whose it is.
        setting: Which of its settings.
        run: Prunes for every budget of a case.
        looks_at: What it sees of the data: nothing, images, or images and labels.
        seeded: Whether it depends on the seed.
        screened: Whether it is tested only where it does well on the calibration images.
        recalibrates: Whether it is also measured after recalibrating batch norms.
        training: How the pruned network is finetuned; None: not at all.
        at: Only at these percents of the MACs removed; at all if empty.
    """

    tool: str
    setting: str
    run: Callable[[Case], Iterator[Pruned]]
    looks_at: str = ""
    seeded: bool = False
    screened: bool = False
    recalibrates: bool = True
    training: Any = None
    at: tuple[int, ...] = ()


def problem(
    network: str, seed: int = 0, limit: int | None = None, held_out: HeldOut = "train"
) -> Task:
    """Return the project's own task for a network."""
    return cifar10(
        depth=DEPTHS[network], eval_batch_size=BATCH, seed=seed, limit=limit, held_out=held_out
    )


def case(network: str, seed: int, count: int, budgets: Iterable[int]) -> Case:
    """Draw calibration images for a network."""
    found = problem(network)
    images, labels = joined(found.data("valid"))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:count]
    return Case(
        network=network,
        dense=found.model(),
        example=found.example_inputs[0],
        images=images[order],
        labels=labels[order],
        seed=seed,
        budgets=tuple(sorted(budgets)),
    )


def joined(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Join batches into one tensor of images and one of labels."""
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, *, bf16: bool = True) -> float:
    """Compute the share of right answers in percent."""
    model = copy.deepcopy(model).eval().to(memory_format=torch.channels_last)
    right = 0
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
            outputs = model(x.contiguous(memory_format=torch.channels_last))
            right += int((outputs.argmax(1) == y).sum())
    return 100 * right / len(labels)


@torch.no_grad()
def recalibrated(model: nn.Module, images: Tensor, seed: int = 0) -> nn.Module:
    """Return a copy whose batch norms have the statistics of these images, augmented.

    The checkpoints' own statistics are of augmented images: those of plain ones cost the dense
    ResNet-20 four points on training images that were held out.
    """
    model = copy.deepcopy(model).eval().to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # the plain mean over all batches
            module.train()
    for batch in augmented(images, seed).split(BATCH):
        model(batch.contiguous(memory_format=torch.channels_last))
    return model.eval()


def augmented(images: Tensor, seed: int) -> Tensor:
    """Shift images by up to 4 pixels over black and flip every other, as in training."""
    random = torch.Generator().manual_seed(seed)
    black = -torch.tensor(MEAN).view(-1, 1, 1) / torch.tensor(STD).view(-1, 1, 1)
    size = images.shape[-1]
    padded = F.pad(images - black, (PAD, PAD, PAD, PAD))
    windows = padded.unfold(2, size, 1).unfold(3, size, 1)
    rows, columns = torch.randint(2 * PAD + 1, (2, len(images)), generator=random)
    shifted = windows[torch.arange(len(images)), :, rows, columns] + black
    flips = torch.rand(len(images), generator=random) < 0.5
    return torch.where(flips.view(-1, 1, 1, 1), shifted.flip(3), shifted)
