"""Grids made finer or coarser, and read at places that are computed."""

import torch.nn.functional as F
from torch import Tensor

from prunella.onnxfiles.numbers import Operand, UnreadError, as_tensor, numbers
from prunella.onnxfiles.operators._registry import Call, optional, reads

_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}


@reads("Resize", "Upsample")
def resize(call: Call, x: Operand, *rest: Operand) -> Tensor:
    """Change the grid."""
    value = as_tensor(x)
    scales, sizes = _target(call, value, rest)
    mode = call.get("mode", "nearest")
    where = call.get(
        "coordinate_transformation_mode", "asymmetric" if call.opset < 11 else "half_pixel"
    )
    if call.get("antialias", 0) or call.get("exclude_outside", 0) or call.get("axes"):
        raise UnreadError("it resizes in a way that torch does not")
    if mode == "nearest":
        return _nearest(call, value, where, scales, sizes)
    corners = where == "align_corners"
    halves = where in ("half_pixel", "pytorch_half_pixel")
    if not (corners or halves):
        raise UnreadError(f"it resizes by {where}")
    if mode == "cubic" and (value.ndim != 4 or call.get("cubic_coeff_a", -0.75) != -0.75):
        raise UnreadError("it resizes in a way that torch does not")
    kind = "bicubic" if mode == "cubic" else _LINEAR.get(value.ndim)
    if kind is None:
        raise UnreadError(f"it resizes {value.ndim} dimensions")
    grid = [int(n) for n in value.shape[2:]]
    exact = all(n == own * s for n, own, s in zip(sizes, grid, scales, strict=True))
    if (corners and not exact) or (where == "pytorch_half_pixel" and 1 in sizes):
        raise UnreadError("it resizes in a way that torch does not")
    if exact:
        return F.interpolate(value, sizes, mode=kind, align_corners=corners)
    return F.interpolate(
        value, scale_factor=scales, mode=kind, align_corners=False, recompute_scale_factor=False
    )


def _target(call: Call, value: Tensor, rest: tuple[Operand, ...]) -> tuple[list[float], list[int]]:
    """Return scales and sizes of the grid."""
    grid = [int(n) for n in value.shape[2:]]
    at = 1 if call.opset > 10 else 0
    scales, sizes = optional(rest, at), optional(rest, at + 1)
    if sizes is not None and numbers(sizes, "size"):
        found = [int(n) for n in numbers(sizes, "size")]
        if found[1] != int(value.shape[1]):
            raise UnreadError("it resizes channels")
        return [n / own for n, own in zip(found[2:], grid, strict=True)], found[2:]
    given = [float(s) for s in (call.get("scales") or numbers(scales, "scale"))]
    if given[:2] != [1.0, 1.0]:
        raise UnreadError("it resizes channels")
    return given[2:], [int(n * s) for n, s in zip(grid, given[2:], strict=True)]


def _nearest(
    call: Call, value: Tensor, where: str, scales: list[float], sizes: list[int]
) -> Tensor:
    rounding = call.get("nearest_mode", "floor" if call.opset < 11 else "round_prefer_floor")
    if where == "asymmetric" and rounding == "floor":
        return F.interpolate(value, sizes, mode="nearest")
    whole = all(scale >= 1 and scale == int(scale) for scale in scales)
    if whole and (where, rounding) in _REPEATS:
        return F.interpolate(value, sizes, mode="nearest")
    if (where, rounding) == ("half_pixel", "round_prefer_ceil"):
        return F.interpolate(value, sizes, mode="nearest-exact")
    raise UnreadError(f"it takes the nearest by {where} and {rounding}")


# For whole factors these all repeat every element.
_REPEATS = {
    ("half_pixel", "round_prefer_floor"),
    ("half_pixel", "round_prefer_ceil"),
    ("pytorch_half_pixel", "round_prefer_floor"),
    ("pytorch_half_pixel", "round_prefer_ceil"),
    ("tf_half_pixel_for_nn", "floor"),
}


@reads("GridSample")
def grid_sample(call: Call, x: Operand, grid: Operand) -> Tensor:
    """Read at places that are computed."""
    modes = {"linear": "bilinear", "cubic": "bicubic"}
    mode = call.get("mode", "bilinear")
    return F.grid_sample(
        as_tensor(x),
        as_tensor(grid),
        modes.get(mode, mode),
        call.get("padding_mode", "zeros"),
        bool(call.get("align_corners", 0)),
    )
