"""Which channels an array's elements stand for: the values that rules work on."""

from prunella.labels.labels import (
    Extent,
    Followed,
    Labels,
    Layer,
    Layers,
    Operand,
    Rows,
    Shape,
    dims_of,
    narrow_to,
    outermost,
    pad,
    shrink,
    spread,
    varies,
    varying,
)

__all__ = [
    "Extent",
    "Followed",
    "Labels",
    "Layer",
    "Layers",
    "Operand",
    "Rows",
    "Shape",
    "dims_of",
    "narrow_to",
    "outermost",
    "pad",
    "shrink",
    "spread",
    "varies",
    "varying",
]
