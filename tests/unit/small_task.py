"""A task that trains in milliseconds: two classes of points, told apart by a small network."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from prunella.tasks import Metric, Split, Task, accuracy, cross_entropy


class Points:
    """Batches of points, shuffled by epoch; may raise at a batch, and notes the epochs asked."""

    def __init__(self, seed: int, count: int = 48, size: int = 8) -> None:
        random = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(2, (count,), generator=random)
        shift = (self.labels * 2 - 1).unsqueeze(1).float()
        self.points = torch.randn(count, 4, generator=random) + shift
        self.size = size
        self.epoch = 0
        self.shuffle = False
        self.raise_at: tuple[int, int] | None = None
        self.error: BaseException = RuntimeError("the disk of images is gone")

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.labels) // self.size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.arange(len(self.labels))
        if self.shuffle:
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(self.epoch))
        for index in range(len(self)):
            if self.raise_at == (self.epoch, index):
                raise self.error
            part = order[index * self.size : (index + 1) * self.size]
            yield self.points[part], self.labels[part]


def small_model(seed: int = 0) -> nn.Module:
    """Make a network with batch norm (buffers) and dropout (random numbers while training)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2)
        )


def small_task(train: Points | None = None, metric: Metric | None = None) -> Task:
    """State the task; give `train` to make its loader misbehave."""
    splits = {"train": train or Points(0), "valid": Points(1), "test": Points(2)}
    splits["train"].shuffle = True

    def data(split: Split) -> Points:
        return splits[split]

    return Task(
        name="points",
        model=small_model,
        data=data,
        loss=cross_entropy,
        metric=metric or accuracy(),
        example_inputs=(torch.zeros(1, 4),),
    )
