"""Read CIFAR-10 from disk: lossless strips in .npz files, or torchvision's own folder."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prunella.errors import TaskError
from prunella.progress import Progress, or_silent

TRAIN_FILES = tuple(f"data_batch_{part}.npz" for part in range(1, 6))
TEST_FILES = ("test_batch.npz",)
TORCHVISION_FOLDER = "cifar-10-batches-py"
VARIABLE = "PRUNELLA_DATA"

# Where the folder stands when nobody says: beside the folder one works in, or beside the checkout.
_BESIDE = (Path("../shared/data"), Path(__file__).resolve().parents[3].parent / "shared" / "data")


def data_folder(given: str | Path | None) -> Path:
    """Choose the folder of data sets: the one given, or `PRUNELLA_DATA`, or ../shared/data.

    Raises:
        TaskError: It does not exist.
    """
    named = given or os.environ.get(VARIABLE)
    if named:
        folder = Path(named).expanduser()
        if not folder.is_dir():
            origin = "option `data`" if given else f"the environment variable {VARIABLE}"
            raise TaskError(f"there is no folder `{folder}`, which {origin} names. {_remedy()}")
        return folder
    for folder in _BESIDE:
        if folder.is_dir():
            return folder
    raise TaskError(f"CIFAR-10 was not found: {_BESIDE[0]} does not exist. {_remedy()}")


def read(folder: Path, *, train: bool, progress: Progress | None = None) -> tuple[Tensor, Tensor]:
    """Decode the 50,000 training or the 10,000 test images.

    Args:
        folder: Has `cifar10/*.npz`, the `*.npz` themselves, or torchvision's folder.
        train: Which of the two sets.
        progress: See `prunella.progress`.

    Returns:
        uint8 images `[samples, 3, 32, 32]` and int64 labels `[samples]`.

    Raises:
        TaskError: There are no images, they are damaged, or a package to read them is missing.
    """
    names = TRAIN_FILES if train else TEST_FILES
    for strips in (folder / "cifar10", folder):
        if (strips / names[0]).is_file():
            with or_silent(progress)("decoding CIFAR-10", len(names)) as advance:
                return _read_strips(strips, names, advance)
    for root in (folder, folder.parent):
        if (root / TORCHVISION_FOLDER).is_dir():
            return _read_torchvision(root, train=train)
    raise TaskError(
        f"there is neither `cifar10/{names[0]}` nor `{TORCHVISION_FOLDER}` in `{folder}`. "
        f"{_remedy()}"
    )


def _remedy() -> str:
    return (
        f"Set {VARIABLE}, or the task's option `data`, to a folder that contains `cifar10` "
        f"(.npz strips) or `{TORCHVISION_FOLDER}` (as torchvision.datasets.CIFAR10 unpacks it)"
    )


def _read_strips(
    folder: Path, names: tuple[str, ...], advance: Callable[[int], None]
) -> tuple[Tensor, Tensor]:
    # Each file has `labels` and strips `s..`: lossless images of many pictures one above another.
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as cause:
        raise TaskError(
            "reading the .npz strips of CIFAR-10 needs pillow: pip install 'prunella[demo]'"
        ) from cause
    import io
    import zipfile

    images, labels = [], []
    for name in names:
        path = folder / name
        try:
            with path.open("rb") as file, np.load(file) as content:
                for key in sorted(key for key in content.files if key.startswith("s")):
                    with Image.open(io.BytesIO(content[key].tobytes())) as strip:
                        images.append(np.asarray(strip.convert("RGB")).reshape(-1, 32, 32, 3))
                labels.append(content["labels"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, UnidentifiedImageError) as cause:
            raise TaskError(
                f"`{path}` is missing or damaged ({type(cause).__name__}: {cause}). Put the "
                "original file back"
            ) from cause
        advance(1)
    pixels = torch.from_numpy(np.concatenate(images)).permute(0, 3, 1, 2).contiguous()
    return pixels, torch.from_numpy(np.concatenate(labels).astype(np.int64))


def _read_torchvision(root: Path, *, train: bool) -> tuple[Tensor, Tensor]:
    # These files are pickles by the authors of the data set; torchvision checks their md5 first.
    try:
        from torchvision.datasets import CIFAR10
    except ImportError as cause:
        raise TaskError(
            f"reading `{root / TORCHVISION_FOLDER}` needs torchvision: "
            "pip install 'prunella[vision]'"
        ) from cause
    try:
        data = CIFAR10(str(root), train=train, download=False)
    except RuntimeError as cause:
        raise TaskError(
            f"`{root / TORCHVISION_FOLDER}` is incomplete or damaged: {cause}. Download it again "
            "with torchvision.datasets.CIFAR10(folder, download=True)"
        ) from cause
    pixels = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return pixels, torch.tensor(data.targets, dtype=torch.int64)
