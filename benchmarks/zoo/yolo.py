"""The YOLO family from Ultralytics, and RT-DETR, built from their own descriptions."""

import logging

from torch import nn
from ultralytics.nn import tasks
from ultralytics.utils import LOGGER

from benchmarks.zoo.network import Network, image

LOGGER.setLevel(logging.ERROR)  # it prints every network it builds

SIZE = 128

KINDS = {
    "cls": tasks.ClassificationModel,
    "obb": tasks.OBBModel,
    "pose": tasks.PoseModel,
    "seg": tasks.SegmentationModel,
}
"""What a suffix of the name asks for; without one, a detector."""

NAMES = (
    "yolov5n yolov8n yolov9t yolov10n yolo11n yolo12n yolo26n "
    "yolov8n-cls yolov8n-pose yolov8n-seg yolo11n-cls yolo11n-obb yolo11n-pose yolo11n-seg "
    "yolov3-tiny yolov6n rtdetr-l"
).split()


def names() -> list[str]:
    """List the networks: one of every version, smallest size; other tasks; relatives."""
    return NAMES


def network(name: str) -> Network:
    """Build a network of the list."""
    return Network(_make(name), image(SIZE))


def _make(name: str) -> nn.Module:
    if name.startswith("rtdetr"):
        return tasks.RTDETRDetectionModel(f"{name}.yaml", verbose=False)
    make = KINDS.get(name.rpartition("-")[2], tasks.DetectionModel)
    return make(f"{name}.yaml", verbose=False)
