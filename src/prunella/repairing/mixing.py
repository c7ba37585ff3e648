"""Where channels are mixed: convolutions and linear layers, their inputs laid out as rows.

Such a node computes `y = W x + b` for many rows `x`: the patches that a kernel sees, the tokens of
a sequence. What a removed channel did is in its columns of `W` alone, so what can be done about it
is least squares over rows.

A transposed convolution is one whose kernel sees zeros between the inputs: which of its taps meet
an input depends on where the output lies, so most of what a row holds is zero.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prunella.graph import Graph, Node, Ref, refs

_CONVS = {f"aten.conv{n}d.{kind}": n for n in (1, 2, 3) for kind in ("default", "padding")}
_TRANSPOSED = {
    "aten.conv_transpose1d.default": 1,
    "aten.conv_transpose2d.input": 2,
    "aten.conv_transpose3d.input": 3,
}


WIDEST = 6144
"""Columns of a weight beyond which a fit takes longer than it is worth."""

_ROWS, _PER_COLUMN = 32768, 4  # rows for one fit: so many, and so many for every column
_EXACT = 1024  # columns up to which sums are kept in float64


@dataclass(frozen=True)
class Mixer:
    """A node that mixes channels by a parameter that no other node uses.

    `weight` and `bias` are the user's names; the bias is None where there is none of its own.
    `given` is the graph's name of a bias that is there nevertheless, but cannot be changed: it is
    computed, or others use it.
    `into` says in which dimension of the weight the channels are that it reads, `parts` into how
    many conv groups they are divided.
    """

    index: int
    node: Node
    weight: str
    bias: str | None
    into: int
    parts: int
    given: str | None = None

    @property
    def spatial(self) -> int:
        """Count the dimensions a kernel moves along."""
        return _spatial(self.node)

    def ins(self, weight: Tensor) -> int:
        """Count the channels that one of the parts reads."""
        return weight.shape[self.into] // (self.parts if self.into == 0 else 1)

    def outs(self, weight: Tensor) -> int:
        """Count the channels that all parts make."""
        return weight.shape[1 - self.into] * (self.parts if self.into == 0 else 1)

    def matrix(self, weight: Tensor) -> Tensor:
        """Lay a weight out as `[parts, outs, ins * kernel]`; a view where that is possible."""
        if self.into == 0:
            apart = weight.reshape(self.parts, self.ins(weight), weight.shape[1], -1)
            return apart.transpose(1, 2).flatten(2)
        return weight.reshape(self.parts, weight.shape[0] // self.parts, -1)

    def unmatrix(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        """Undo `matrix`."""
        if self.into == 0:
            apart = matrix.reshape(self.parts, shape[1], shape[0] // self.parts, -1)
            matrix = apart.transpose(1, 2)
        return matrix.reshape(tuple(shape))


def mixers(graph: Graph, nodes: Sequence[Node]) -> list[Mixer]:
    """List the nodes that mix channels, in order."""
    uses = Counter(ref.name for node in nodes for ref in {*refs((node.args, node.kwargs))})
    # A parameter under two names is used twice.
    sources: Counter[str] = Counter()
    for name, value in graph.values.items():
        if value.kind in ("parameter", "buffer"):
            sources[value.source] += uses[name]
    found = []
    for index, node in enumerate(nodes):
        places = _places(node)
        if places is None:
            continue
        x, weight, bias, into = places
        if not all(isinstance(item, Ref) for item in (x, weight)) or x == weight:
            continue
        known = graph.values[weight.name]
        if known.kind != "parameter" or sources[known.source] != 1:
            continue
        spatial = _spatial(node)
        if spatial and len(graph.values[x.name].shape) != spatial + 2:
            continue
        if not spatial and len(known.shape) != 2:
            continue
        parts = _parts(node, graph.values[x.name].shape, known.shape)
        outs = known.shape[1 - into] * (parts if into == 0 else 1)
        biases = _biases(graph, bias, outs, sources)
        if biases is None:
            continue
        own, given = biases
        found.append(Mixer(index, node, known.source, own, into, parts, given))
    return found


def _biases(
    graph: Graph, bias: Any, outs: int, sources: Mapping[str, int]
) -> tuple[str | None, str | None] | None:
    """Return the bias of a node's own and the one given it; None where it is one for every row."""
    if bias is None:
        return None, None
    if not isinstance(bias, Ref):
        return None
    value = graph.values[bias.name]
    if value.kind == "parameter" and sources[value.source] == 1 and value.shape == (outs,):
        return value.source, None
    return (None, bias.name) if value.shape in ((outs,), (1,), ()) else None


def _places(node: Node) -> tuple[Any, Any, Any, int] | None:
    """Return input, weight, bias and the weight's dimension of inputs."""
    args = node.args
    if node.op in _CONVS or node.op == "aten.linear.default":
        return args[0], args[1], args[2] if len(args) > 2 else None, 1
    if node.op in _TRANSPOSED:
        return args[0], args[1], args[2] if len(args) > 2 else None, 0
    if node.op == "aten.addmm.default" and not node.kwargs:
        return args[1], args[2], args[0], 0
    if node.op in ("aten.mm.default", "aten.matmul.default"):
        return args[0], args[1], None, 0
    return None


def _spatial(node: Node) -> int:
    return _CONVS.get(node.op, 0) or _TRANSPOSED.get(node.op, 0)


def _parts(node: Node, read: Sequence[int], weight: Sequence[int]) -> int:
    """Count the groups of a convolution; 1 of anything else."""
    if node.op in _TRANSPOSED:
        return int(node.args[6]) if len(node.args) > 6 else 1
    return read[1] // weight[1] if node.op in _CONVS else 1


def rows_wanted(width: int, batches: int) -> int:
    """Say how many rows of each batch a fit of so many columns wants."""
    return max(max(_ROWS, _PER_COLUMN * width) // batches, 2)


def sampled(
    mixer: Mixer, made: Tensor, most: int, generator: torch.Generator, batch: int
) -> tuple[Tensor, Tensor]:
    """Choose which of a node's rows to look at: numbers of rows, of two halves of the batch.

    What is fitted to one half is judged on the other: the rows of one sample are much alike, so
    halves of the rows would not do. A row in the middle goes to either half by turns of the
    batches, so that batches of one sample fill both.
    """
    rows = made.numel() // _width(mixer, made)
    middle = (rows + batch % 2) // 2
    halves = []
    for start, stop in ((0, middle), (middle, rows)):
        if stop - start <= most // 2:
            chosen = torch.arange(start, stop)
        else:
            chosen = torch.randint(start, stop, (most // 2,), generator=generator)
        halves.append(chosen.to(made.device))
    return halves[0], halves[1]


def _width(mixer: Mixer, made: Tensor) -> int:
    return made.shape[1] if mixer.spatial else made.shape[-1]


def rows_made(mixer: Mixer, made: Tensor, chosen: Tensor | None = None) -> Tensor:
    """Lay what a node made out as rows, `[parts, rows, outs]`."""
    wide = made.movedim(1, -1) if mixer.spatial else made
    rows = wide.reshape(-1, wide.shape[-1])
    rows = rows if chosen is None else rows[chosen]
    return _by_part(mixer, rows)


def rows_read(
    mixer: Mixer, x: Tensor, made: Tensor, kernel: Sequence[int], chosen: Tensor | None = None
) -> Tensor:
    """Lay what a node reads out as rows, `[parts, rows, ins * kernel]`.

    Only the rows that were chosen are gathered: patches overlap, so all of them take many times
    the memory of the activations themselves.
    """
    if not mixer.spatial:
        rows = x.reshape(-1, x.shape[-1])
        return (rows if chosen is None else rows[chosen])[None]
    grid = made.shape[2:]
    count = made.shape[0] * prod(grid)
    numbers = torch.arange(count, device=x.device) if chosen is None else chosen
    sample, *places = torch.unravel_index(numbers, (made.shape[0], *grid))
    seen = _seen_between if mixer.node.op in _TRANSPOSED else _seen
    patches = torch.stack(list(seen(mixer, x, kernel, sample, places)), -1)
    return _by_part(mixer, patches.flatten(1))  # of [rows, channels, kernel]


def _seen(
    mixer: Mixer, x: Tensor, kernel: Sequence[int], sample: Tensor, places: Sequence[Tensor]
) -> Iterator[Tensor]:
    """Yield for each tap of the kernel what it meets where outputs are, `[rows, channels]`."""
    stride, dilation, padded = _window(mixer, x, kernel)
    starts = [place * step for place, step in zip(places, stride, strict=True)]
    for offset in itertools.product(*(range(size) for size in kernel)):
        at = [s + o * d for s, o, d in zip(starts, offset, dilation, strict=True)]
        where: tuple[Any, ...] = (sample, slice(None), *at)
        yield padded[where]


def _seen_between(
    mixer: Mixer, x: Tensor, kernel: Sequence[int], sample: Tensor, places: Sequence[Tensor]
) -> Iterator[Tensor]:
    """Yield the same of a transposed convolution: zeros where a tap meets no input."""
    n, args = mixer.spatial, mixer.node.args
    stride = _each(args[3] if len(args) > 3 else 1, n)
    padding = _each(args[4] if len(args) > 4 else 0, n)
    dilation = _each(args[7] if len(args) > 7 else 1, n)
    for offset in itertools.product(*(range(size) for size in kernel)):
        at: list[Tensor] = []
        meets = torch.ones_like(sample, dtype=torch.bool)
        for dim in range(n):
            away = places[dim] + padding[dim] - offset[dim] * dilation[dim]
            whole = away.div(stride[dim], rounding_mode="floor")
            size = x.shape[dim + 2]
            meets &= (away % stride[dim] == 0) & (whole >= 0) & (whole < size)
            at.append(whole.clamp(0, size - 1))
        where: tuple[Any, ...] = (sample, slice(None), *at)
        # Not by a product: what is not met may be infinite.
        yield x[where].masked_fill(~meets[:, None], 0)


def _by_part(mixer: Mixer, rows: Tensor) -> Tensor:
    # With a size for each dimension: no -1 can be found out where there is no row.
    count, width = rows.shape
    return rows.reshape(count, mixer.parts, width // mixer.parts).transpose(0, 1)


def _window(
    mixer: Mixer, x: Tensor, kernel: Sequence[int]
) -> tuple[Sequence[int], Sequence[int], Tensor]:
    """Return stride, dilation and the padded input."""
    n, args = mixer.spatial, mixer.node.args
    stride = _each(args[3] if len(args) > 3 else 1, n)
    padding = args[4] if len(args) > 4 else 0
    dilation = _each(args[5] if len(args) > 5 else 1, n)
    if padding == "same":
        whole = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        sides = [(total // 2, total - total // 2) for total in whole]
    else:
        sides = [(p, p) for p in _each(0 if padding == "valid" else padding, n)]
    flat = [side for pair in reversed(sides) for side in pair]
    return stride, dilation, F.pad(x, flat) if any(flat) else x


def _each(value: Any, n: int) -> Sequence[int]:
    found = tuple(value) if isinstance(value, tuple | list) else (value,)
    return found * n if len(found) == 1 else found


@dataclass(eq=False)
class Moments:
    """Sums over rows, `x` read and `y` wanted: enough for least squares of any of its columns.

    `square` is `[parts, ins, ins]`, `cross` `[parts, ins, outs]`, sums of products; `x` and `y` are
    plain sums, `power` is that of squares of `y`, `[parts]`.
    """

    square: Tensor
    cross: Tensor
    x: Tensor
    y: Tensor
    power: Tensor
    rows: int

    def add(self, read: Tensor, wanted: Tensor) -> None:
        """Take in more rows, `[parts, rows, ins]` and `[parts, rows, outs]`."""
        kind = self.square.dtype
        self.square += (read.mT @ read).to(kind)
        self.cross += (read.mT @ wanted).to(kind)
        self.x += read.sum(1, dtype=kind)
        self.y += wanted.sum(1, dtype=kind)
        self.power += wanted.square().sum((1, 2), dtype=kind)
        self.rows += read.shape[1]

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.square + other.square,
            self.cross + other.cross,
            self.x + other.x,
            self.y + other.y,
            self.power + other.power,
            self.rows + other.rows,
        )

    def finite(self) -> bool:
        """Say whether no row held an infinity or what is no number."""
        sums = (self.square, self.cross, self.x, self.y)
        return all(bool(found.isfinite().all()) for found in sums)

    def means(self) -> tuple[Tensor, Tensor]:
        """Return the mean rows `x` and `y`, `[parts, ins]` and `[parts, outs]`."""
        return self.x / self.rows, self.y / self.rows

    def centered(self, *, centre: bool = True) -> tuple[Tensor, Tensor]:
        """Return covariances, or second moments where the mean cannot be corrected."""
        square, cross = self.square / self.rows, self.cross / self.rows
        if not centre:
            return square, cross
        x, y = self.means()
        return square - x[:, :, None] * x[:, None], cross - x[:, :, None] * y[:, None]

    def unexplained(self, weight: Tensor, constant: Tensor) -> float:
        """Return the mean square of `y - weight x - constant`, summed over outputs.

        Args:
            weight: `[parts, outs, ins]`.
            constant: `[parts, outs]`.
        """
        x, y = self.means()
        square, cross = self.square / self.rows, self.cross / self.rows
        mean = (weight @ x[:, :, None])[:, :, 0]
        total = (weight @ square * weight).sum() - 2 * (weight.mT * cross).sum()
        total = total + (self.power / self.rows).sum()
        return float(total + (constant * (constant + 2 * (mean - y))).sum())


def no_moments(read: Tensor, wanted: Tensor) -> Moments:
    """Begin with no rows, for rows of these widths."""
    parts, _, ins = read.shape
    outs = wanted.shape[2]
    zeros: Any = read.new_zeros
    # Rounding is like damping a little more: for wide weights that is still less than is damped
    # anyway, and several times faster.
    exact = ins <= _EXACT and read.device.type != "mps"
    kind = torch.float64 if exact else torch.float32
    return Moments(
        zeros(parts, ins, ins, dtype=kind),
        zeros(parts, ins, outs, dtype=kind),
        zeros(parts, ins, dtype=kind),
        zeros(parts, outs, dtype=kind),
        zeros(parts, dtype=kind),
        0,
    )


def input_of(node: Node) -> Ref:
    """Return what a node reads."""
    found = _places(node)
    assert found is not None, "a mixer has an input"
    read: Ref = found[0]
    return read


def users_of(nodes: Sequence[Node]) -> Mapping[str, list[int]]:
    """List for every value the nodes that read it."""
    users: dict[str, list[int]] = {}
    for index, node in enumerate(nodes):
        for name in dict.fromkeys(ref.name for ref in refs((node.args, node.kwargs))):
            users.setdefault(name, []).append(index)
    return users
