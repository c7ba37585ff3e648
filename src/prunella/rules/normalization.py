"""Norms: labels pass, the affine parts and running statistics are united with them."""

from collections.abc import Iterable

from prunella.graph import Node, Path, Ref
from prunella.labels import Extent, Labels, Layers, Operand, spread, varies, varying
from prunella.rules._registry import argument, resizes, rule
from prunella.rules.reduction import take_statistics

_LAYER = (
    "aten.layer_norm.default",
    "aten.native_layer_norm.default",
    "aten.rms_norm.default",
    "aten._fused_rms_norm.default",
)
_GROUP = ("aten.group_norm.default", "aten.native_group_norm.default")
_INSTANCE = "aten.instance_norm.default"


@rule("aten.batch_norm.default", "aten.native_batch_norm.default", _INSTANCE,
      "aten._native_batch_norm_legit_no_training.default")  # fmt: skip
def batch_norm(labels: Labels, node: Node) -> list[Layers]:
    """Unite the channels (dimension 1) with weight, bias, running mean and variance."""
    x = node.args[0]
    if argument(node, 5, "training", False) is True:  # or `use_input_stats`
        others = [d for d in range(len(labels.shape(x))) if d > 1 or (d < 1 and not _single(node))]
        take_statistics(labels, node, labels.of(x), others)
    return _with_affine(labels, node, node.args[1:5])


def _single(node: Node) -> bool:
    """Say whether every sample is normalised alone."""
    return node.op == _INSTANCE


def _with_affine(labels: Labels, node: Node, affine: Iterable[Ref | None]) -> list[Layers]:
    """Let the channels (dimension 1) meet vectors; further outputs are statistics by channel."""
    x = node.args[0]
    shape = labels.shape(x)
    wide = tuple(n if d == 1 else 1 for d, n in enumerate(shape))
    operands = [labels.operand(x)]
    for ref in affine:
        if isinstance(ref, Ref):
            layers = tuple(spread(a.reshape(-1), 1, len(shape)) for a in labels.of(ref))
            operands.append(Operand(layers, wide))
    made = labels.meet(shape, operands, node)
    statistics = tuple(a.reshape(-1) for a in made if varies(a, 1))
    by_channel = (shape[1],)
    return [
        made if i == 0 else statistics if labels.shapes[name] == by_channel else ()
        for i, name in enumerate(node.outputs)
    ]


@rule(*_GROUP)
def group_norm(labels: Labels, node: Node) -> list[Layers]:
    """Let every block of channels (dimension 1) keep equally many, or go alone where it is one."""
    x = node.args[0]
    layers = labels.of(x)
    if not _is_each_alone(labels, node):
        layers = take_statistics(labels, node, layers, range(1, len(labels.shape(x))))
        blocks = _blocks(node)
        for layer in layers:
            if varies(layer, 1) and blocks > 1:
                labels.equal_rows(layer.reshape(blocks, -1), node, moved=False)
    else:
        layers = take_statistics(labels, node, layers, range(2, len(labels.shape(x))))
    first = 2 if node.op == "aten.group_norm.default" else 1
    affine = [argument(node, first + i, name) for i, name in enumerate(_AFFINE)]
    return _with_affine(labels, node, affine)


_AFFINE = ("weight", "bias")


def _blocks(node: Node) -> int:
    blocks: int = node.args[1 if node.op == "aten.group_norm.default" else 6]
    return blocks


def _is_each_alone(labels: Labels, node: Node) -> bool:
    """Say whether every block is one channel: from the original's shape, whatever was cut."""
    return labels.value(node.args[0]).shape[1] == _blocks(node)


@resizes(*_GROUP)
def group_norm_sizes(labels: Labels, node: Node) -> dict[Path, Extent]:
    """Count the blocks where each is one channel; the native form names all its sizes."""
    x = node.args[0]
    channels = Extent(x.name, 1, 0, labels.shape(x)[1])
    sizes: dict[Path, Extent] = {}
    if node.op == "aten.native_group_norm.default":
        sizes[4,] = channels
    if _is_each_alone(labels, node):
        sizes[1 if node.op == "aten.group_norm.default" else 6,] = channels
    return sizes


@rule(*_LAYER)
def layer_norm(labels: Labels, node: Node) -> list[Layers]:
    """Unite the last dimensions with weight and bias; the statistics are over what is kept."""
    x = node.args[0]
    shape = labels.shape(x)
    over = range(len(shape) - len(node.args[1]), len(shape))
    take_statistics(labels, node, labels.of(x), over)
    names = _AFFINE[:1] if "rms_norm" in node.op else _AFFINE
    affine = [argument(node, 2 + i, name) for i, name in enumerate(names)]
    operands = [labels.operand(ref) for ref in (x, *affine) if isinstance(ref, Ref)]
    made = labels.meet(shape, operands, node)
    statistics = tuple(a for a in made if not any(varies(a, d) for d in over))
    return [made if i == 0 else statistics for i, _ in enumerate(node.outputs)]


@resizes(*_LAYER)
def layer_norm_sizes(labels: Labels, node: Node) -> dict[Path, Extent]:
    """Name the dimensions that are normalised."""
    x, sizes = node.args[:2]
    first = len(labels.shape(x)) - len(sizes)
    return {(1, i): Extent(x.name, first + i, 0, n) for i, n in enumerate(sizes)}


@rule("aten._weight_norm.default", "aten._weight_norm_interface.default")
def weight_norm(labels: Labels, node: Node) -> list[Layers]:
    """Divide a weight by its norm over all dimensions but one, and unite that with the lengths."""
    direction, length = node.args[:2]
    shape = labels.shape(direction)
    kept = argument(node, 2, "dim", 0)
    take_statistics(labels, node, labels.of(direction), set(range(len(shape))) - {kept})
    operands = [labels.operand(direction), labels.operand(length)]
    made = labels.meet(shape, operands, node)
    norms = tuple(a for a in made if varying(a) == (kept,))
    return [made if i == 0 else norms for i, _ in enumerate(node.outputs)]
