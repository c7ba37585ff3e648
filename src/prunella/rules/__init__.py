"""The catalogue of operator rules: one file per family, the only folder that names ATen ops.

A rule is a function `(labels, node) -> layers of the output`; `@rule("aten.name.overload")`
registers it. An operator without a rule freezes what it touches and says so.
"""

from prunella.rules import (
    attention,
    convolution,
    creation,
    cutting,
    distances,
    elementwise,
    frequency,
    indexing,
    joining,
    movement,
    normalization,
    products,
    quantization,
    recurrent,
    reduction,
    sampling,
    scaling,
    windows,
)
from prunella.rules._registry import RULES, Rule, apply, argument, extents, resizes, rule

__all__ = [
    "RULES",
    "Rule",
    "apply",
    "argument",
    "attention",
    "convolution",
    "creation",
    "cutting",
    "distances",
    "elementwise",
    "extents",
    "frequency",
    "indexing",
    "joining",
    "movement",
    "normalization",
    "products",
    "quantization",
    "recurrent",
    "reduction",
    "resizes",
    "rule",
    "sampling",
    "scaling",
    "windows",
]
