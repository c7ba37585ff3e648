"""ESPNet (p = 2, q = 8) on CamVid: mean intersection over union of 11 classes."""

from collections.abc import Iterable, Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.real_models import data
from benchmarks.real_models.subject import Inputs, Subject

BATCH, CLASSES = 4, 11
EVERY = 4
"""Calibration is with every fourth picture of the validation split: 26 of 101."""


@cache
def _split(name: str) -> tuple[np.ndarray, np.ndarray]:
    pictures, masks = data.loaders().camvid(name)
    return pictures, masks


def _prepare(pictures: np.ndarray) -> Tensor:
    networks = data.networks()
    mean, std = np.float32(networks.CAMVID_MEAN), np.float32(networks.CAMVID_STD)
    scaled = (pictures[..., ::-1] - mean) / std / 255
    return torch.from_numpy(np.ascontiguousarray(scaled)).permute(0, 3, 1, 2).float().contiguous()


def _test() -> Iterator[tuple[Inputs, np.ndarray]]:
    pictures, masks = _split("test")
    for start in range(0, len(pictures), BATCH):
        yield (_prepare(pictures[start : start + BATCH]),), masks[start : start + BATCH]


def _unlabelled() -> Iterator[Inputs]:
    pictures = _split("val")[0][::EVERY]
    for start in range(0, len(pictures), BATCH):
        yield (_prepare(pictures[start : start + BATCH]),)


def _score(pairs: Iterable[tuple[Tensor, np.ndarray]]) -> dict[str, float]:
    """Compute the mean IoU; void pixels (class 11 of the masks) do not count, a prediction does."""
    seen = np.zeros((CLASSES, CLASSES + 1), np.int64)
    for outputs, masks in pairs:
        said, valid = outputs.argmax(1).numpy(), masks < CLASSES
        cells = (CLASSES + 1) * masks[valid].astype(int) + said[valid]
        seen += np.bincount(cells, minlength=seen.size).reshape(seen.shape)
    right = np.diag(seen)
    union = seen.sum(1) + seen[:, :CLASSES].sum(0) - right
    return {
        "mIoU": 100 * float((right / union).mean()),
        "pixel accuracy": 100 * float(right.sum() / seen.sum()),
    }


def _build() -> nn.Module:
    model: nn.Module = data.networks().ESPNet()
    model.load_state_dict(data.weights("camvid_espnet_p2_q8"))
    return model.eval()


ESPNET = Subject(
    name="ESPNet, CamVid",
    build=_build,
    example=lambda: (torch.randn(1, 3, 360, 480),),
    test=_test,
    score=_score,
    unlabelled=_unlabelled,
    note=f"every {EVERY}th picture of the validation split",
    heads=lambda model: [model.get_submodule("classifier")],
)
