"""Tensors side by side: what they are joined along is laid end to end, the rest meets."""

from dataclasses import replace

import torch
from torch import Tensor

from prunella.graph import Node
from prunella.labels import Labels, Layer, Layers, Operand, Shape, varies, varying
from prunella.rules._registry import argument, rule


@rule("aten.cat.default", "aten.concat.default", "aten.concatenate.default")
def cat(labels: Labels, node: Node) -> Layers:
    """Concatenate the labels; those of the other dimensions meet."""
    tensors = [ref for ref in node.args[0] if labels.shape(ref) != (0,)] or list(node.args[0])
    dim = argument(node, 1, "dim", 0) % len(labels.shape(tensors[0]))
    return _join(labels, node, [labels.operand(ref) for ref in tensors], dim)


@rule("aten.hstack.default", "aten.vstack.default", "aten.dstack.default",
      "aten.row_stack.default", "aten.column_stack.default")  # fmt: skip
def cat_along(labels: Labels, node: Node) -> Layers:
    """Concatenate along the first, second or third dimension; tensors of fewer get more."""
    kind = node.op.split(".")[1]
    dim = {"dstack": 2, "vstack": 0, "row_stack": 0}.get(kind, 1)
    parts = [_at_least(labels.operand(ref), kind) for ref in node.args[0]]
    return _join(labels, node, parts, min(dim, len(parts[0].shape) - 1))


def _at_least(part: Operand, kind: str) -> Operand:
    """Give a tensor the dimensions that it needs to stand beside others."""
    ndim = len(part.shape)
    if kind == "hstack" or ndim > 1 + (kind == "dstack"):
        return part
    before = int(kind != "column_stack") if ndim < 2 else 0
    after = int(kind in ("dstack", "column_stack"))

    def widened(sizes: Shape) -> Shape:
        return (1,) * before + tuple(sizes) + (1,) * after

    layers = tuple(a.reshape(widened(tuple(a.shape))) for a in part.layers)
    return Operand(layers, widened(part.shape))


@rule("aten.broadcast_tensors.default")
def broadcast(labels: Labels, node: Node) -> list[Layers]:
    """Give tensors one shape: what they carry meets there."""
    shape = labels.shapes[node.outputs[0]]
    met = labels.meet(shape, [labels.operand(ref) for ref in node.args[0]], node)
    return [met for _ in node.outputs]


@rule("aten.stack.default")
def stack(labels: Labels, node: Node) -> Layers:
    """Join tensors along a new dimension: what they carry meets there."""
    dim = argument(node, 1, "dim", 0) % (len(labels.shape(node.args[0][0])) + 1)
    parts = [
        Operand(
            tuple(a.unsqueeze(dim) for a in part.layers),
            (*part.shape[:dim], 1, *part.shape[dim:]),
        )
        for part in map(labels.operand, node.args[0])
    ]
    return _join(labels, node, parts, dim)


def _join(labels: Labels, node: Node, parts: list[Operand], dim: int) -> Layers:
    """Concatenate what varies along `dim`, let what does not meet.

    A part that is not labelled along `dim` gets labels of its own that may not be cut.
    """
    parts = [part for part in parts if part.shape[dim]] or parts  # an empty one adds nothing
    parts = _by_heads(labels, parts, dim, node)
    along: list[Tensor] = []
    across: list[Operand] = []
    labelled = any(varies(a, dim) for part in parts for a in part.layers)
    for part in parts:
        flat = tuple(1 if d == dim else n for d, n in enumerate(part.shape))
        mine = [a for a in part.layers if varies(a, dim)]
        rest = tuple(a for a in part.layers if not varies(a, dim))
        across.append(Operand(rest, flat))
        if labelled and not mine:
            own = labels.fresh(part.shape[dim])
            labels.freeze(own, "is concatenated from a plain extent", node)
            mine = [own.reshape([-1 if d == dim else 1 for d in range(len(flat))])]
        if labelled:
            for other in mine[1:]:
                labels.unite(mine[0], other)
            along.append(mine[0])
    met = labels.meet(across[0].shape, across, node)
    return (*met, _side_by_side(labels, along, dim, node)) if labelled else met


def _by_heads(labels: Labels, parts: list[Operand], dim: int, node: Node) -> list[Operand]:
    """Where one part is cut by whole heads only, the others are too (partial rotary embeddings)."""
    joint = {d for part in parts for a in part.layers if varies(a, dim) for d in varying(a)} - {dim}
    for part in parts:
        inside = any(varies(a, dim) for a in part.layers)
        if joint and not inside and any(joint <= set(varying(a)) for a in part.layers):
            reason = "is concatenated with what is cut as a whole"
            return [
                replace(p, layers=labels.pass_through(p.layers, [dim], reason, node)) for p in parts
            ]
    return parts


def _side_by_side(labels: Labels, parts: list[Layer], dim: int, node: Node) -> Layer:
    """Concatenate layers along `dim`; what only some vary along is collapsed, lest rows differ."""
    shared = set(varying(parts[0])).intersection(*(varying(part) for part in parts))
    whole = []
    for part in parts:
        alone = [d for d in varying(part) if d != dim and d not in shared]
        whole.append(labels.collapse(part, alone, "is concatenated across", node))
    return torch.cat(whole, dim)
