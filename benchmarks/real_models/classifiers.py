"""EfficientNet-Lite0 and SqueezeNet 1.0 on one picture of each of ImageNet's 1000 classes.

Odd pictures are the test; some of the even ones are for calibration, without their labels. The
figure on all 1000 is there beside it: only *calibration* has seen a quarter of them.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from benchmarks.real_models import data
from benchmarks.real_models.subject import Inputs, Subject

BATCH = 50
EVERY = 4
"""Calibration is with every fourth picture: half of the even ones."""

NOTE = f"every {EVERY}th of the 1000 pictures"


@cache
def _pictures() -> np.ndarray:
    pictures, _ = data.loaders().imagenet1k_sample()
    return pictures


def _middle(pictures: np.ndarray, side: int) -> Tensor:
    start = (pictures.shape[1] - side) // 2
    cut = pictures[:, start : start + side, start : start + side]
    return torch.from_numpy(np.ascontiguousarray(cut)).permute(0, 3, 1, 2).float()


def _lite(pictures: np.ndarray) -> Tensor:
    return (_middle(pictures, 224) - 127.5) / 127.5


def _squeeze(pictures: np.ndarray) -> Tensor:
    bgr = pictures[..., ::-1]
    return _middle(bgr, 227) - torch.tensor([104.0, 117.0, 123.0]).view(1, 3, 1, 1)


def _test(prepare: Callable[[np.ndarray], Tensor]) -> Iterator[tuple[Inputs, Tensor]]:
    pictures = _pictures()
    for start in range(0, len(pictures), BATCH):
        yield (prepare(pictures[start : start + BATCH]),), torch.arange(start, start + BATCH)


def _unlabelled(prepare: Callable[[np.ndarray], Tensor]) -> Iterator[Inputs]:
    pictures = _pictures()[::EVERY]
    for start in range(0, len(pictures), BATCH):
        yield (prepare(pictures[start : start + BATCH]),)


def _top1(pairs: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    right = torch.cat([outputs.argmax(1) == labels for outputs, labels in pairs]).double()
    return {
        "top-1 (500)": 100 * float(right[1::2].mean()),
        "top-1 (all 1000)": 100 * float(right.mean()),
    }


def _build_squeeze() -> nn.Module:
    model = torchvision.models.squeezenet1_0()
    model.load_state_dict(data.weights("imagenet_squeezenet1_0_deepcompressed"))
    return model.eval()


EFFICIENTNET_LITE0 = Subject(
    name="EfficientNet-Lite0, ImageNet sample",
    build=lambda: data.networks().efficientnet_lite0(),
    example=lambda: (torch.randn(1, 3, 224, 224),),
    test=partial(_test, _lite),
    score=_top1,
    unlabelled=partial(_unlabelled, _lite),
    note=NOTE,
    heads=lambda model: [model.get_submodule("classifier")],
)

SQUEEZENET = Subject(
    name="SqueezeNet 1.0, ImageNet sample",
    build=_build_squeeze,
    example=lambda: (torch.randn(1, 3, 227, 227),),
    test=partial(_test, _squeeze),
    score=_top1,
    unlabelled=partial(_unlabelled, _squeeze),
    note=NOTE,
    heads=lambda model: [model.get_submodule("classifier.1")],
)
