"""Every network of torchvision; quantized ones excepted, which are no floating-point models."""

import torch
from torch import Tensor, nn
from torchvision import models

from benchmarks.zoo.network import Arguments, Draw, Network, image, tensors
from benchmarks.zoo.randomising import randomise

SMALL = 64
"""Side of the images where nothing else is said."""

SIZES = {
    "inception_v3": 299,  # its auxiliary head, which runs in training mode, takes nothing smaller
    "maxvit_t": 224,  # every stage is cut into windows of 7
    "swin_t": 112,  # windows of 7 in the first three stages
    "swin_s": 112,
    "swin_b": 112,
    "swin_v2_t": 128,  # windows of 8
    "swin_v2_s": 128,
    "swin_v2_b": 128,
    "vit_h_14": 56,
}

TUNED = {"vit": "image_size"}
"""Networks by prefix that are built for one size of image, and the option that says it."""

FAMILIES = (
    "alexnet vgg resnet resnext wide_resnet densenet googlenet inception squeezenet mobilenet "
    "mnasnet shufflenet efficientnet regnet"
).split()
"""Prefixes of the names of the convolutional classifiers."""

FRAMES, DETECTION, FLOW = 8, 128, 128
"""Frames of a clip; sides of the images for detectors and for optical flow, which needs 128."""


def names() -> list[str]:
    """List all networks, smallest first within each task."""
    tasks = (models, models.segmentation, models.detection, models.video, models.optical_flow)
    return [
        name for task in tasks for name in sorted(models.list_models(module=task), key=_by_size)
    ]


def convolutional() -> list[str]:
    """List the convolutional classifiers, smallest first."""
    found = models.list_models(module=models)
    return sorted((name for name in found if name.startswith(tuple(FAMILIES))), key=_by_size)


def _by_size(name: str) -> tuple[int, str]:
    """Look up the number of parameters, which torchvision tells without building the network."""
    weights = next(iter(models.get_model_weights(name)))
    return int(weights.meta["num_params"]), name


def network(name: str) -> Network:
    """Build a network of the list."""
    module = models.get_model_builder(name).__module__.removeprefix("torchvision.models.")
    if module.startswith("detection"):
        return _detector(name)
    if module.startswith("segmentation"):
        options = {} if name.startswith("lraspp") else {"aux_loss": True}
        return Network(_plain(name, weights_backbone=None, **options), image(SMALL))
    if module.startswith("video"):
        return _video(name)
    if module.startswith("optical_flow"):
        frames = tensors((3, FLOW, FLOW), (3, FLOW, FLOW), num_flow_updates=3)
        return Network(_plain(name), frames)
    return _classifier(name, SIZES.get(name, SMALL))


def build(name: str, size: int) -> tuple[nn.Module, Tensor]:
    """Build a classifier with random weights and draw an image of this size for it."""
    torch.manual_seed(0)
    made = _classifier(name, size)
    model = randomise(made.model, made.inputs)
    return model, torch.randn(1, 3, size, size)


def _plain(name: str, **options: object) -> nn.Module:
    return models.get_model(name, weights=None, **options)


def _classifier(name: str, size: int) -> Network:
    options: dict[str, object] = {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    for prefix, option in TUNED.items():
        if name.startswith(prefix):
            options[option] = size
    return Network(_plain(name, **options), image(size))


def _video(name: str) -> Network:
    if name.startswith(("mvit", "s3d")):  # built for clips of this shape
        return Network(_plain(name), tensors((3, 16, 224, 224)))
    return Network(_plain(name), tensors((3, FRAMES, SMALL, SMALL)))


def _detector(name: str) -> Network:
    """Build a detector that lets every box pass: with random weights no score is high."""
    few = 20
    options: dict[str, object] = {"min_size": DETECTION, "max_size": DETECTION}
    if "rcnn" in name:
        options |= {
            "box_score_thresh": 0.0,
            "box_detections_per_img": few,
            "rpn_pre_nms_top_n_test": 5 * few,
            "rpn_post_nms_top_n_test": few,
            "rpn_pre_nms_top_n_train": 5 * few,
            "rpn_post_nms_top_n_train": few,
            "rpn_score_thresh": 0.0,
        }
    else:
        options |= {"score_thresh": 0.0, "detections_per_img": few, "topk_candidates": 5 * few}
    if name.startswith("ssd"):
        del options["min_size"], options["max_size"]  # their own size is fixed
    model = _plain(name, weights_backbone=None, **options)
    return Network(model, _pictures, _annotated(name))


def _pictures(samples: int) -> Arguments:
    return ([torch.randn(3, DETECTION, DETECTION) for _ in range(samples)],), {}


def _annotated(name: str) -> Draw:
    """Return a draw of images with the boxes (masks, keypoints) that are to be found on them."""

    def draw(samples: int) -> Arguments:
        (pictures,), _ = _pictures(samples)
        corners = torch.tensor([[8.0, 8.0, 72.0, 88.0], [40.0, 24.0, 120.0, 100.0]])
        target = {"boxes": corners, "labels": torch.tensor([1, 1])}
        if "maskrcnn" in name:
            target["masks"] = torch.zeros(2, DETECTION, DETECTION, dtype=torch.uint8)
            target["masks"][:, 24:88, 40:72] = 1
        if "keypoint" in name:
            target["keypoints"] = torch.tensor([44.0, 50.0, 1.0]).expand(2, 17, 3).contiguous()
        return (pictures, [dict(target) for _ in range(samples)]), {}

    return draw
