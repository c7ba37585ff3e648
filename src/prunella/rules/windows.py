"""Pooling and resizing: the grid changes, the channels pass."""

from prunella.graph import Node
from prunella.labels import Labels, Layers
from prunella.rules._registry import rule

_POOLS = [
    f"aten.{kind}_pool{n}d.default"
    for n in (1, 2, 3)
    for kind in ("max", "avg", "adaptive_avg", "_adaptive_avg", "adaptive_max", "fractional_max")
] + [f"aten.max_pool{n}d_with_indices.default" for n in (1, 2, 3)]
_RESIZES = [
    f"aten.{name}.{overload}"
    for name in (
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d "
        "upsample_linear1d upsample_trilinear3d upsample_bicubic2d _upsample_nearest_exact1d "
        "_upsample_nearest_exact2d _upsample_nearest_exact3d _upsample_bilinear2d_aa "
        "_upsample_bicubic2d_aa"
    ).split()
    for overload in ("vec", "default")
]


@rule(*_POOLS, *_RESIZES)
def window(labels: Labels, node: Node) -> list[Layers]:
    """Let batch and channels pass; labels on the grid must stay."""
    digits = next(c for c in node.op if c.isdigit())
    ndim = len(labels.shape(node.args[0]))
    grid = range(ndim - int(digits), ndim)
    layers = labels.pass_through(labels.of(node.args[0]), grid, "is pooled along", node)
    return [layers for _ in node.outputs]
