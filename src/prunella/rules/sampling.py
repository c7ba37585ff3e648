"""Features read at positions that are computed: regions of a detector, grids, offsets.

Channels pass; whatever says where to look stays as it is.
"""

from torch import Tensor

from prunella.graph import Node, Ref, refs
from prunella.labels import Labels, Layers, Operand, spread, varies
from prunella.rules._registry import argument, no_rule, rule

_WHERE = "says where to look"
_GRID = "is sampled along"


def _freeze(labels: Labels, node: Node, tensors: tuple[Ref, ...]) -> None:
    for ref in tensors:
        for layer in labels.of(ref):
            labels.freeze(layer, _WHERE, node)


def _channels(labels: Labels, node: Node, x: Ref, *, batch: bool) -> Layers:
    """Return the layers along the channels (dimension 1), and along the batch if that goes on."""
    others = [d for d in range(len(labels.shape(x))) if d > 1 or (d == 0 and not batch)]
    return labels.pass_through(labels.of(x), others, _GRID, node)


@rule("aten.grid_sampler.default", "aten.grid_sampler_2d.default", "aten.grid_sampler_3d.default")
def grid_sample(labels: Labels, node: Node) -> Layers:
    """Sample every channel at the places of a grid."""
    x, grid = node.args[:2]
    _freeze(labels, node, (grid,))
    return _channels(labels, node, x, batch=True)


@rule("aten.affine_grid_generator.default")
def affine_grid(labels: Labels, node: Node) -> Layers:
    """Make a grid."""
    _freeze(labels, node, (node.args[0],))
    return ()


@rule("torchvision.nms.default")
def suppress(labels: Labels, node: Node) -> Layers:
    """Choose boxes."""
    _freeze(labels, node, node.args[:2])
    return ()


@rule("torchvision.roi_align.default", "torchvision.roi_pool.default")
def pool_regions(labels: Labels, node: Node) -> list[Layers]:
    """Pool every channel of some regions."""
    x, regions = node.args[:2]
    _freeze(labels, node, (regions,))
    layers = _channels(labels, node, x, batch=False)
    return [layers for _ in node.outputs]


@rule("torchvision.ps_roi_align.default", "torchvision.ps_roi_pool.default")
def pool_regions_by_place(labels: Labels, node: Node) -> list[Layers]:
    """Pool regions whose places have channels of their own: those of one output go together."""
    x, regions, _, height, width = node.args[:5]
    _freeze(labels, node, (regions,))
    made = []
    for layer in _channels(labels, node, x, batch=False):
        if varies(layer, 1):
            rows = layer.unflatten(1, (-1, height * width))
            labels.unite(rows, rows.narrow(2, 0, 1))
            made.append(rows.select(2, 0))
    layers = tuple(a for a in made if a.numel() > 1)
    return [layers for _ in node.outputs]


@rule("torchvision.deform_conv2d.default")
def deformable(labels: Labels, node: Node) -> Layers:
    """Convolve at places that are moved by offsets, of which there is one for each kernel place."""
    x, weight, offset, mask, bias = node.args[:5]
    conv_groups, offset_groups = (argument(node, i, "") for i in (11, 12))
    if conv_groups > 1:
        return tuple(no_rule(labels, node)[0])
    _freeze(labels, node, (offset, mask))
    layers = _channels(labels, node, x, batch=True)
    ins, outs = (labels.labels_along(weight, d) for d in (1, 0))
    if isinstance(ins, Tensor):
        if offset_groups > 1:
            labels.equal_rows(ins.reshape(offset_groups, -1), node, moved=False)
        layers = labels.contract(layers, 1, ins.numel(), ins, node)
    else:
        layers = labels.pass_through(layers, [1], "is multiplied as a whole", node)
    for layer in labels.of(weight):
        if any(n > 1 for n in layer.shape[2:]):
            labels.structural.append(layer.reshape(-1))
    if not isinstance(outs, Tensor):
        return layers
    wide = (1, outs.numel(), 1, 1)
    tail = tuple(spread(a.reshape(-1), 1, 4) for a in labels.of(bias))
    sides = [Operand((spread(outs, 1, 4),), wide), Operand(tail, wide)]
    return (*layers, *labels.meet(wide, sides if tail else sides[:1], node))


@rule("aten.max_unpool2d.default", "aten.max_unpool3d.default")
def unpool(labels: Labels, node: Node) -> Layers:
    """Put values back where pooling took them from, channel by channel."""
    met = labels.meet(
        labels.shape(node.args[0]), [labels.operand(ref) for ref in refs(node.args[:2])], node
    )
    ndim = len(labels.shape(node.args[0]))
    grid = range(ndim - int(node.op.split("unpool")[1][0]), ndim)
    return labels.pass_through(met, grid, _GRID, node)
