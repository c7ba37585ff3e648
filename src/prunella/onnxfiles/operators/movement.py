"""Elements on the move: reshape, transpose, concatenate, split, slice, pad."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prunella.onnxfiles.numbers import Host, Operand, UnreadError, as_tensor, numbers, vector
from prunella.onnxfiles.operators._registry import Call, optional, reads


def axes_of(call: Call, operands: tuple[Operand, ...], index: int) -> list[int] | None:
    """Return the axes a node works on: an attribute once, an input in newer opsets."""
    given = optional(operands, index)
    found = call.get("axes") if given is None else numbers(given, "list of axes")
    return None if found is None else list(found)


@reads("Shape")
def shape(call: Call, x: Operand) -> Host:
    """Read the sizes of all dimensions, or of some in a row."""
    sizes = list(x.shape) if isinstance(x, Host) else list(as_tensor(x).shape)
    return vector(sizes[call.get("start", 0) : call.get("end", len(sizes))])


@reads("Size")
def size(_: Call, x: Operand) -> Host:
    """Count the elements."""
    total: Any = 1
    for n in as_tensor(x).shape:
        total = n * total
    return Host((total,), (), torch.int64)


@reads("Reshape")
def reshape(call: Call, x: Operand, target: Operand = None) -> Tensor:
    """Lay the elements out anew; a 0 in the shape means the size there is."""
    value = as_tensor(x)
    given = call.get("shape") if target is None else numbers(target, "shape")
    zero = not call.get("allowzero", 0)
    sizes = [value.shape[i] if zero and n == 0 else n for i, n in enumerate(given)]
    return value.reshape(sizes)


@reads("Flatten")
def flatten(call: Call, x: Operand) -> Tensor:
    """Make a matrix."""
    value = as_tensor(x)
    axis = call.get("axis", 1)
    axis = axis + value.ndim if axis < 0 else axis
    if axis == 0:
        return value.reshape(1, -1)
    if axis == value.ndim:
        return value.reshape(-1, 1)
    tail = value.flatten(axis)
    return tail if axis == 1 else tail.flatten(0, axis - 1)


@reads("Transpose")
def transpose(call: Call, x: Operand) -> Tensor:
    """Change the order of dimensions."""
    value = as_tensor(x)
    return value.permute(call.get("perm") or tuple(reversed(range(value.ndim))))


@reads("Squeeze")
def squeeze(call: Call, x: Operand, *rest: Operand) -> Tensor:
    """Drop dimensions of size 1."""
    value, axes = as_tensor(x), axes_of(call, rest, 0)
    if axes is None:
        return value.squeeze()
    for axis in sorted((axis % value.ndim for axis in axes), reverse=True):
        value = value.squeeze(axis)
    return value


@reads("Unsqueeze")
def unsqueeze(call: Call, x: Operand, *rest: Operand) -> Tensor:
    """Put in dimensions of size 1."""
    value, axes = as_tensor(x), axes_of(call, rest, 0)
    assert axes is not None, "the standard asks for axes"
    ndim = value.ndim + len(axes)
    for axis in sorted(axis % ndim for axis in axes):
        value = value.unsqueeze(axis)
    return value


@reads("Concat")
def concat(call: Call, *operands: Operand) -> Tensor:
    """Put one behind the other."""
    return torch.cat([as_tensor(x) for x in operands], call.get("axis"))


@reads("Split")
def split(call: Call, x: Operand, sizes: Operand = None) -> tuple[Tensor, ...]:
    """Cut into pieces along one dimension."""
    value, axis = as_tensor(x), call.get("axis", 0)
    given = call.get("split") if sizes is None else numbers(sizes, "list of sizes")
    if given is not None:
        pieces: tuple[Tensor, ...] = value.split(list(given), axis)
        return pieces
    return value.chunk(call.get("num_outputs", call.outputs), axis)


@reads("Slice")
def cut(call: Call, x: Operand, *rest: Operand) -> Tensor:
    """Take a range along some dimensions."""
    value = as_tensor(x)
    if not rest:
        starts, ends = list(call.get("starts")), list(call.get("ends"))
    else:
        starts, ends = numbers(rest[0], "start"), numbers(rest[1], "end")
    axes = axes_of(call, rest, 2) or list(range(len(starts)))
    given = optional(rest, 3)
    steps = [1] * len(starts) if given is None else numbers(given, "step")
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0:
            value = _backwards(value, start, end, axis, step)
            continue
        whole: list[Any] = [slice(None)] * value.ndim
        whole[axis] = slice(start, None if end >= 2**31 - 1 else end, step)
        value = value[tuple(whole)]
    return value


def _backwards(value: Tensor, start: int, end: int, axis: int, step: int) -> Tensor:
    count = value.shape[axis]
    if step != -1 or (start not in (-1,) and start < count - 1) or end > -count:
        raise UnreadError("it takes a part of a dimension backwards")
    return value.flip(axis)


@reads("Expand")
def expand(_: Call, x: Operand, target: Operand) -> Tensor:
    """Repeat along dimensions of size 1, by a view."""
    value, sizes = as_tensor(x), numbers(target, "shape")
    before = [1] * (len(sizes) - value.ndim) + [int(n) for n in value.shape]
    sizes = [1] * (len(before) - len(sizes)) + sizes
    # A 1 where there is more stands for what there is: expansion goes both ways.
    return value.expand(
        [-1 if n == 1 and own > 1 else n for n, own in zip(sizes, before, strict=True)]
    )


@reads("Tile")
def tile(_: Call, x: Operand, repeats: Operand) -> Tensor:
    """Repeat along dimensions."""
    return as_tensor(x).repeat(numbers(repeats, "number of repeats"))


@reads("Pad")
def pad(call: Call, x: Operand, *rest: Operand) -> Tensor:
    """Put something around."""
    value = as_tensor(x)
    given = call.get("pads") if not rest else numbers(rest[0], "list of pads")
    fill = optional(rest, 1)
    constant = call.get("value", 0.0) if fill is None else numbers(fill, "fill")[0]
    axes = axes_of(call, rest, 2) or list(range(value.ndim))
    sides = {axis % value.ndim: (given[i], given[i + len(axes)]) for i, axis in enumerate(axes)}
    flat = [n for d in reversed(range(value.ndim)) for n in sides.get(d, (0, 0))]
    while len(flat) > 2 and flat[-2:] == [0, 0]:
        flat = flat[:-2]
    mode = call.get("mode", "constant")
    if mode == "constant":
        return F.pad(value, flat, value=constant)
    if len(flat) > 2 * (value.ndim - 2):
        raise UnreadError(f"it pads channels by {mode}")
    flat += [0, 0] * (value.ndim - 2 - len(flat) // 2)
    return F.pad(
        value, flat, mode={"edge": "replicate", "reflect": "reflect"}.get(mode, "circular")
    )


@reads("DepthToSpace")
def depth_to_space(call: Call, x: Operand) -> Tensor:
    """Lay channels out in space."""
    value, block = as_tensor(x), call.get("blocksize")
    if call.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(value, block)
    n, _, h, w = value.shape
    wide = value.reshape(n, block, block, -1, h, w).permute(0, 3, 4, 1, 5, 2)
    return wide.reshape(n, -1, h * block, w * block)


@reads("SpaceToDepth")
def space_to_depth(call: Call, x: Operand) -> Tensor:
    """Lay space out in channels."""
    value, block = as_tensor(x), call.get("blocksize")
    if call.get("mode", "DCR") == "CRD":
        return F.pixel_unshuffle(value, block)
    n, c, h, w = value.shape
    wide = value.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return wide.reshape(n, -1, h // block, w // block)


@reads("ConstantOfShape")
def fill(call: Call, target: Operand) -> Tensor:
    """Make a constant."""
    value, dtype = call.get("fill", (0.0, torch.float32))
    return torch.full(tuple(numbers(target, "shape")), value, dtype=dtype)


@reads("Range")
def count_up(_: Call, start: Operand, limit: Operand, delta: Operand) -> Tensor:
    """Count."""
    bounds = [numbers(bound, "range")[0] for bound in (start, limit, delta)]
    assert isinstance(start, Host), "it has numbers"
    return torch.arange(*bounds, dtype=start.dtype)


@reads("Trilu")
def triangle(call: Call, x: Operand, diagonal: Operand = None) -> Tensor:
    """Keep a triangle."""
    k = 0 if diagonal is None else numbers(diagonal, "diagonal")[0]
    return (torch.triu if call.get("upper", 1) else torch.tril)(as_tensor(x), k)
