"""Batches of small images held in memory, shuffled and augmented as a function of (seed, epoch)."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class ImageBatches:
    """Batches `(images, labels)`, images as float `[batch, channels, height, width]`.

    Args:
        images: uint8 `[samples, channels, height, width]`; kept as they are, batches are converted.
        labels: int64 `[samples]`.
        batch_size: Samples a batch; the last one may be smaller.
        mean: Subtracted per channel, in units of the largest value.
        std: Divided by per channel, in the same units.
        top: The largest value a pixel can have.
        train: Shuffle, and augment as the next two say.
        pad: Crop back after padding this many black pixels on every side.
        flip: Flip every other image, left to right.
        seed: With the epoch, decides the order and the augmentation.
    """

    def __init__(  # noqa: PLR0913
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        top: float = 255.0,
        train: bool = False,
        pad: int = 0,
        flip: bool = False,
        seed: int = 0,
    ) -> None:
        self._images, self._labels = images, labels
        self._batch_size = batch_size
        self._mean = torch.tensor(mean).view(-1, 1, 1) * top
        self._scale = 1 / (torch.tensor(std).view(-1, 1, 1) * top)
        self._train, self._pad, self._flip = train, pad, flip
        self._seed, self._epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and augmentation the next pass has."""
        self._epoch = epoch

    def __len__(self) -> int:
        count = len(self._labels)
        # Batch norm cannot train on a batch of one sample.
        lone = self._train and count > 1 and count % self._batch_size == 1
        return count // self._batch_size + bool(count % self._batch_size) - lone

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self._labels)
        if not self._train:
            for start in range(0, count, self._batch_size):
                part = slice(start, start + self._batch_size)
                yield self._normal(self._images[part]), self._labels[part]
            return
        random = torch.Generator().manual_seed(mix(self._seed, self._epoch))
        order = torch.randperm(count, generator=random)
        shifts = torch.randint(2 * self._pad + 1, (2, count), generator=random)
        flips = torch.rand(count, generator=random) < (0.5 if self._flip else 0.0)
        for start in range(0, len(self) * self._batch_size, self._batch_size):
            chosen = order[start : start + self._batch_size]
            images = crop(self._images[chosen], shifts[:, chosen], self._pad)
            images = torch.where(flips[chosen].view(-1, 1, 1, 1), images.flip(3), images)
            yield self._normal(images), self._labels[chosen]

    def _normal(self, images: Tensor) -> Tensor:
        return (images.float() - self._mean) * self._scale


def crop(images: Tensor, shifts: Tensor, pad: int) -> Tensor:
    """Pad every image with zeros and cut a window of its own size out of it.

    Args:
        images: `[batch, channels, height, width]`.
        shifts: `[2, batch]`, the window's row and column in the padded image, 0 to `2 * pad`.
        pad: Pixels on every side.
    """
    if pad == 0:
        return images
    height, width = images.shape[2:]
    # All windows at once is a view [batch, channels, rows, columns, height, width]; picking one
    # a sample copies only that one.
    windows = F.pad(images, (pad, pad, pad, pad)).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images)), :, shifts[0], shifts[1]]


def mix(*parts: int) -> int:
    """Make one seed of several numbers; near ones give unrelated seeds."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
