"""A user's task file: a small convolutional network that tells four noisy patterns apart.

Its model takes half a second to train and an epoch of it a few hundredths.
"""

import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunella.tasks import Split, Task, accuracy, cross_entropy

CLASSES, SIZE = 4, 8
COUNTS = {"train": 256, "valid": 128, "test": 128}


class Pictures:
    """Batches of one split; the order of the training pictures depends on the epoch alone."""

    def __init__(self, split: Split, seed: int, pause: float) -> None:
        random = torch.Generator().manual_seed(seed + 10 * list(COUNTS).index(split))
        patterns = torch.randn(CLASSES, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(7))
        self.labels = torch.randint(CLASSES, (COUNTS[split],), generator=random)
        noise = torch.randn(COUNTS[split], 1, SIZE, SIZE, generator=random)
        self.images = patterns[self.labels] + 0.7 * noise
        self.shuffled, self.epoch, self.pause = split == "train", 0, pause

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.labels) // 32

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.arange(len(self.labels))
        if self.shuffled:
            random = torch.Generator().manual_seed(self.epoch)
            order = torch.randperm(len(order), generator=random)
        for part in order.split(32):
            time.sleep(self.pause)
            yield self.images[part], self.labels[part]


class Tiny(nn.Module):
    """Three convolutions with a residual, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.conv1 = nn.Conv2d(12, 16, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 12, 3, padding=1)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Map `[batch, 1, 8, 8]` to logits."""
        hidden = self.stem(images)
        hidden = hidden + self.conv2(F.relu(self.norm1(self.conv1(hidden))))
        logits: Tensor = self.head(F.relu(hidden).mean((2, 3)))
        return logits


def trained() -> nn.Module:
    """Train the dense model: always the same one."""
    torch.manual_seed(0)
    model = Tiny()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    data = Pictures("train", 0, 0)
    for epoch in range(6):
        data.set_epoch(epoch)
        for images, labels in data:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.eval()


def task(seed: int = 0, pause: float = 0.0) -> Task:
    """State the task; `pause` seconds before every batch make a run long enough to be killed."""
    return Task(
        name="tiny",
        model=trained,
        data=lambda split: Pictures(split, seed, pause),
        loss=cross_entropy,
        metric=accuracy(),
        example_inputs=(torch.zeros(1, 1, SIZE, SIZE),),
        settings={"lr": 0.02},
    )
