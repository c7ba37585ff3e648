"""What ONNX operators compute, in torch; one file per family."""

from prunella.onnxfiles.operators import (
    elementwise,
    indexing,
    movement,
    normalization,
    pooling,
    products,
    reduction,
    resampling,
)
from prunella.onnxfiles.operators._registry import OPERATORS, Call, Reading

__all__ = [
    "OPERATORS",
    "Call",
    "Reading",
    "elementwise",
    "indexing",
    "movement",
    "normalization",
    "pooling",
    "products",
    "reduction",
    "resampling",
]
