"""Models of images: transformers, convolutions and mixtures of both; detectors."""

from collections.abc import Callable
from typing import Any

import transformers as hf

from benchmarks.zoo.network import Network, image

_CLASSES = {"num_labels": 10}
_TOWER = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 160,
    "image_size": 64,
    "patch_size": 16,
}


def _tower(config: Any, model: Any, **options: Any) -> Callable[[], Network]:
    sizes = {**_TOWER, **_CLASSES, **options}
    side = sizes["image_size"]
    side = side[0] if isinstance(side, list) else side
    return lambda: Network(model(config(**sizes)), image(side))


def _stages(config: Any, model: Any, size: int, **options: Any) -> Callable[[], Network]:
    return lambda: Network(model(config(**_CLASSES, **options)), image(size))


def _detr() -> Network:
    backbone = hf.ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage4"],
    )
    config = hf.DetrConfig(
        backbone_config=backbone,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=160,
        decoder_ffn_dim=144,
        num_queries=10,
        **_CLASSES,
    )
    return Network(hf.DetrForObjectDetection(config), image(96))


BUILDERS: dict[str, Callable[[], Network]] = {
    "vit": _tower(hf.ViTConfig, hf.ViTForImageClassification),
    "deit": _tower(hf.DeiTConfig, hf.DeiTForImageClassificationWithTeacher),
    "beit": _tower(hf.BeitConfig, hf.BeitForImageClassification, use_relative_position_bias=True),
    "dinov2": _tower(
        hf.Dinov2Config, hf.Dinov2ForImageClassification, image_size=56, patch_size=14
    ),
    "yolos": _tower(
        hf.YolosConfig, hf.YolosForObjectDetection, image_size=[64, 64], num_detection_tokens=10
    ),
    "swin": _stages(
        hf.SwinConfig,
        hf.SwinForImageClassification,
        64,
        image_size=64,
        window_size=4,
        embed_dim=32,
        depths=[2, 2, 2],
        num_heads=[2, 4, 8],
    ),
    "convnext": _stages(
        hf.ConvNextConfig,
        hf.ConvNextForImageClassification,
        64,
        hidden_sizes=[16, 32, 48, 64],
        depths=[2, 2, 2, 2],
    ),
    "segformer": _stages(
        hf.SegformerConfig,
        hf.SegformerForSemanticSegmentation,
        64,
        hidden_sizes=[16, 32, 40, 64],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 5, 8],
        decoder_hidden_size=32,
    ),
    "resnet": _stages(
        hf.ResNetConfig,
        hf.ResNetForImageClassification,
        64,
        embedding_size=16,
        hidden_sizes=[32, 64, 96, 128],
        depths=[2, 2, 2, 2],
    ),
    "mobilevit": _stages(
        hf.MobileViTConfig,
        hf.MobileViTForImageClassification,
        128,
        image_size=128,
        hidden_sizes=[32, 48, 64],
        neck_hidden_sizes=[8, 16, 24, 32, 40, 48, 64],
    ),
    "levit": _stages(
        hf.LevitConfig,
        hf.LevitForImageClassificationWithTeacher,
        128,
        image_size=128,
        hidden_sizes=[32, 48, 64],
        num_attention_heads=[2, 3, 4],
        depths=[2, 2, 2],
        key_dim=[8, 8, 8],
    ),
    "detr": _detr,
}
