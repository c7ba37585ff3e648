"""A task of your own. Try `prunella run examples/own_task.py --budget.macs 0.5`."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prunella.tasks import Metric, Task


def model() -> nn.Module:
    torch.manual_seed(0)  # stands for: load your trained weights
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2),
    )  # fmt: skip


def data(split: str) -> DataLoader[Any]:
    seed = {"train": 0, "valid": 1, "test": 2}[split]
    images = torch.randn(256, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    labels = (images.mean((1, 2, 3)) > 0).long()
    return DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=split == "train")


def accuracy(pairs: Iterable[tuple[Any, Any]]) -> float:
    right = total = 0
    for outputs, (_, labels) in pairs:
        right += (outputs.argmax(1) == labels).sum().item()
        total += len(labels)
    return right / total


task = Task(
    name="bright or dark",
    model=model,
    data=data,
    loss=lambda outputs, batch: nn.functional.cross_entropy(outputs, batch[1]),
    metric=Metric("accuracy", higher_is_better=True, compute=accuracy),
    example_inputs=(torch.randn(1, 1, 8, 8),),
    settings={"lr": 0.01},
)
