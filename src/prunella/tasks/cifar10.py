"""Built-in task `cifar10`: pretrained ResNet-20/32/44/56 on the CIFAR-10 images."""

from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from prunella.errors import ConfigError, TaskError
from prunella.progress import Progress
from prunella.tasks._cifar_files import VARIABLE, data_folder, read
from prunella.tasks._cifar_resnet import CifarResNet
from prunella.tasks._images import ImageBatches
from prunella.tasks._protocol import Split, Task
from prunella.tasks.metrics import accuracy, cross_entropy

DEPTHS = (20, 32, 44, 56)
VALID_IMAGES = 5_000
# What the pretrained weights expect; not the exact statistics of CIFAR-10.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SPLIT_SEED = 2009

HeldOut = Literal["test", "train"]


def task(  # noqa: PLR0913
    *,
    depth: int = 20,
    batch_size: int = 128,
    eval_batch_size: int = 256,
    limit: int | None = None,
    held_out: HeldOut = "test",
    data: str | Path | None = None,
    weights: str | Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Task:
    """State the task.

    Training images are shifted by up to 4 pixels and flipped. "valid" is 5,000 images, always the
    same, by default of the 10,000 test images: the weights were trained with all training images,
    and choices made on images that they know by heart favour what forgets least, not what
    generalises. (ResNet-20 at half of its MACs, 10 epochs: a quarter of the learning rate gave more
    on training images held out, and less on test images.)

    Args:
        depth: Of the residual network: 20, 32, 44 or 56.
        batch_size: Training images a step.
        eval_batch_size: Images a forward pass when judging.
        limit: Use only this many images of each split, for a quick try.
        held_out: Whose images are "valid": "test" (all training images are trained on, and the
            other half of the test images is "test"), or "train" (45,000 are trained on, and all
            test images are "test").
        data: Folder with `cifar10` or `cifar-10-batches-py`; `PRUNELLA_DATA` or ../shared/data
            by default.
        weights: A safetensors file; `weights/cifar10_resnet{depth}.safetensors` in the data folder
            by default.
        seed: With the epoch, decides the order and augmentation of training images.
        progress: See `prunella.progress`.

    Raises:
        ConfigError: An option is outside what it may be.
        TaskError: Data or weights are missing or damaged.
    """
    if depth not in DEPTHS:
        raise ConfigError(f"depth is one of {DEPTHS}, got {depth=}")
    for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
        if value < 1:
            raise ConfigError(f"{name} is at least 1, got {value}")
    if held_out not in get_args(HeldOut):
        raise ConfigError(f"held_out is one of {get_args(HeldOut)}, got {held_out=}")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is at least 1 image, got {limit=}")
    folder = data_folder(data)

    @cache
    def images(*, train: bool) -> tuple[Tensor, Tensor]:
        return read(folder, train=train, progress=progress)

    def batches(split: Split) -> ImageBatches:
        source = held_out if split == "valid" else split
        pixels, labels = images(train=source == "train")
        chosen: slice | Tensor = slice(limit)
        if source == held_out:
            chosen = _indices(len(labels), source, valid=split == "valid")[:limit]
        return ImageBatches(
            pixels[chosen],
            labels[chosen],
            batch_size=batch_size if split == "train" else eval_batch_size,
            mean=MEAN,
            std=STD,
            train=split == "train",
            pad=4,
            flip=True,
            seed=seed,
        )

    return Task(
        name="cifar10",
        model=lambda: _pretrained(depth, folder, weights),
        data=batches,
        loss=cross_entropy,
        metric=accuracy(),
        example_inputs=(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)),),
        settings={"lr": 0.02, "weight_decay": 1e-4, "channels_last": True},
    )


def _indices(count: int, source: HeldOut, *, valid: bool) -> Tensor:
    """Return which of so many images are held out, or the others."""
    # numpy promises that this generator never changes; torch does not.
    order = np.random.RandomState(_SPLIT_SEED).permutation(count)
    held = min(VALID_IMAGES, count // (2 if source == "test" else 10))
    chosen = order[:held] if valid else order[held:]
    return torch.from_numpy(np.sort(chosen))


def _pretrained(depth: int, folder: Path, weights: str | Path | None) -> nn.Module:
    name = f"cifar10_resnet{depth}.safetensors"
    path = Path(weights).expanduser() if weights else folder / "weights" / name
    if not path.is_file():
        raise TaskError(
            f"there are no pretrained weights `{path}`. Give the file with the task's option "
            f"`weights`, or set {VARIABLE} to a folder that has `weights/{name}`"
        )
    model = CifarResNet(depth)
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as cause:
        raise TaskError(f"`{path}` is damaged: {cause}. Put the original file back") from cause
    wanted = model.state_dict()
    for key in sorted(wanted.keys() | found.keys()):
        shapes = [tuple(state[key].shape) if key in state else None for state in (wanted, found)]
        # Files made elsewhere may lack the counter, which these networks do not use.
        if shapes[0] != shapes[1] and not key.endswith("num_batches_tracked"):
            raise TaskError(
                f"`{path}` does not hold the weights of ResNet-{depth}: `{key}` has shape "
                f"{shapes[1]}, not {shapes[0]}. Check the option `depth`"
            )
    model.load_state_dict(found, strict=False)
    return model.eval()
