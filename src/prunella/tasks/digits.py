"""Built-in task `digits`: a small residual network on scikit-learn's handwritten digits."""

import hashlib
import json
import logging
import os
import tempfile
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prunella.errors import ConfigError, TaskError
from prunella.progress import Progress
from prunella.tasks._images import ImageBatches
from prunella.tasks._protocol import Split, Task
from prunella.tasks.metrics import accuracy, cross_entropy

CLASSES = 10
TOP = 16.0
MEAN, STD = (0.305,), (0.376,)
# Shares of the 1,797 images: the rest is "train".
VALID, TEST = 0.2, 0.2
EPOCHS = 12

_LOG = logging.getLogger("prunella")


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, images: Tensor) -> Tensor:
        """Map `[batch, inputs, height, width]` to `[batch, outputs, height, width]` / stride."""
        hidden = F.relu(self.bn1(self.conv1(images)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(images))


class DigitsNet(nn.Module):
    """A stem and two stages of two blocks, 32 and 64 channels wide."""

    def __init__(self, widths: tuple[int, int] = (32, 64)) -> None:
        super().__init__()
        first, second = widths
        self.stem = nn.Sequential(
            nn.Conv2d(1, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU()
        )
        self.stage1 = nn.Sequential(Block(first, first, 1), Block(first, first, 1))
        self.stage2 = nn.Sequential(Block(first, second, 2), Block(second, second, 1))
        self.head = nn.Linear(second, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Map `[batch, 1, 8, 8]` to logits `[batch, 10]`."""
        hidden = self.stage2(self.stage1(self.stem(images)))
        logits: Tensor = self.head(hidden.mean((2, 3)))
        return logits


def task(
    *,
    batch_size: int = 64,
    limit: int | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> Task:
    """State the task.

    The model is trained when it is first asked for, always from the same seed.

    Args:
        batch_size: Training images a step.
        limit: Use only this many images of each split, for a quick try.
        seed: With the epoch, decides the order and augmentation of training images.
        folder: Where the trained weights are kept; ~/.cache/prunella by default.
        progress: See `prunella.progress`.

    Raises:
        ConfigError: An option is outside what it may be.
        TaskError: scikit-learn, which carries the images, is not installed.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is at least 1, got {batch_size=}")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is at least 1 image, got {limit=}")
    kept = Path(folder).expanduser() if folder else _cache_folder()

    @cache
    def images() -> tuple[Tensor, Tensor]:
        return _read()

    def batches(split: Split) -> ImageBatches:
        pixels, labels = images()
        chosen = _indices(labels.numpy(), split)[:limit]
        return ImageBatches(
            pixels[chosen],
            labels[chosen],
            batch_size=batch_size if split == "train" else 256,
            mean=MEAN,
            std=STD,
            top=TOP,
            train=split == "train",
            pad=1,
            seed=seed,
        )

    stated = Task(
        name="digits",
        model=lambda: _trained(stated, kept, progress),
        data=batches,
        loss=cross_entropy,
        metric=accuracy(),
        example_inputs=(torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)),),
        settings={"lr": 0.05, "weight_decay": 5e-4},
    )
    return stated


def _read() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as cause:
        raise TaskError(
            "task `digits` needs scikit-learn, which carries the images: "
            "pip install 'prunella[demo]'"
        ) from cause
    digits = load_digits()
    pixels = torch.from_numpy(digits.images.astype(np.uint8)).unsqueeze(1)
    return pixels, torch.from_numpy(digits.target.astype(np.int64))


def _indices(labels: np.ndarray, split: Split) -> Tensor:
    """Choose a split's images: of each class the same shares, always the same images."""
    random = np.random.RandomState(0)
    chosen: list[np.ndarray] = []
    for label in range(CLASSES):
        order = random.permutation(np.flatnonzero(labels == label))
        valid, test = round(VALID * len(order)), round(TEST * len(order))
        parts = {
            "valid": order[:valid],
            "test": order[valid : valid + test],
            "train": order[valid + test :],
        }
        chosen.append(parts[split])
    return torch.from_numpy(random.permutation(np.concatenate(chosen)))


def _trained(stated: Task, folder: Path, progress: Progress | None) -> nn.Module:
    from prunella.finetuning import Recipe, finetune

    recipe = Recipe(epochs=EPOCHS, lr=0.1, warmup=0.1, weight_decay=5e-4, distill=0.0)
    size = len(stated.data("train"))  # type: ignore[arg-type]
    settings = json.dumps([asdict(recipe), size, torch.__version__], sort_keys=True)
    name = hashlib.sha256(settings.encode()).hexdigest()[:12]
    path = folder / f"digits-{name}.safetensors"
    kept = _fresh()
    try:
        kept.load_state_dict(load_file(path))
        return kept.eval()
    except FileNotFoundError:
        pass
    except (SafetensorError, RuntimeError, OSError) as cause:
        _LOG.warning("training `digits` again: `%s` is damaged (%s)", path, cause)
    _LOG.info("training the dense model of `digits`, once: its weights are kept in `%s`", folder)
    model = finetune(_fresh(), stated, recipe, progress=progress).model.eval()
    _keep(model, path)
    return model


def _fresh() -> DigitsNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DigitsNet()


def _keep(model: nn.Module, path: Path) -> None:
    # Only a cache: where it cannot be written, the model is trained again next time.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as fresh:
            save_file(model.state_dict(), Path(fresh) / path.name)
            (Path(fresh) / path.name).replace(path)
    except (OSError, SafetensorError) as cause:
        _LOG.warning("the trained weights of `digits` were not kept in `%s`: %s", path, cause)


def _cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "prunella"
