"""Which channels the others can stand in for: least squares from the dense model's activations.

What a group's channel does is in the columns of the weights that read it. If these weights are
fitted anew without it, an error remains that has a closed form; channels go one after another, the
one first whose error is least.

Source: Hassibi, Stork 1992, "Second order derivatives for network pruning: Optimal Brain Surgeon",
eq. 5, with blocks of columns for single weights, as in Kurtic et al. 2023, "ZipLM", eq. 3, and the
errors of all consumers of a group added up.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from prunella.calibration import Calibration, fingerprint
from prunella.masking import slices, zeroed
from prunella.model.modes import evaluating
from prunella.model.structure import check_numbers, tensors
from prunella.plan import Axis, Group, Groups, Scores
from prunella.progress import Progress, or_silent
from prunella.repairing.branches import branches
from prunella.repairing.compensating import least_squares
from prunella.repairing.marching import courses, lane
from prunella.repairing.mixing import (
    WIDEST,
    Mixer,
    Moments,
    input_of,
    mixers,
    no_moments,
    rows_read,
    rows_wanted,
    sampled,
)
from prunella.replaying import run_node

_DAMPING = (1e-3, 1e-2, 1e-1, 1.0)
_PROBES = 64
_AT_ONCE = 32  # channels go one by one until there are so many left, else a share of the rest
_WIDE, _FEWER = 1024, 8  # columns beyond which a step takes long, and the same for those


@dataclass(frozen=True, eq=False)
class Read:
    """What a weight reads in the dense model: moments of its rows, by halves of the data.

    `shift` names the tensor that can make up for a constant: a bias, added, or the mean of the
    batch norm that follows, subtracted.
    """

    mixer: Mixer
    shift: str | None
    halves: tuple[Moments, Moments]

    @cached_property
    def moments(self) -> Moments:
        """The moments of all rows."""
        return self.halves[0] + self.halves[1]

    @cached_property
    def damping(self) -> float:
        """What to add to the diagonal of the covariance, as a share of its mean.

        The share that makes the other half of the data likeliest (as of a normal distribution).
        With fewer samples than columns the covariance alone would say that most columns follow from
        the others. With a single sample there is no other half, and the strongest hold is taken.
        """
        if min(half.rows for half in self.halves) == 0:
            return _DAMPING[-1]
        one, other = (half.centered()[0] for half in self.halves)
        return min(_DAMPING, key=lambda share: _surprise(damped(one, share), other))


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """In which order channels can go, and how much of what reads them is then lost.

    Attributes:
        scores: Channels by the order in which they can go, the first lowest.
        errors: By group: the unexplained share of what its consumers make, summed over them, once
            so many channels are gone, `[channels + 1]`. A group that no weight reads is not in it.
        reads: The moments, by the name of the weight.
        data: Fingerprint of what they were taken of.
    """

    scores: Scores
    errors: Mapping[str, np.ndarray]
    reads: Mapping[str, Read]
    data: str

    @contextmanager
    def cut(
        self, model: nn.Module, groups: Groups, removed: Mapping[str, Sequence[int]]
    ) -> Iterator[nn.Module]:
        """Zero some channels for a while, and fit anew what reads them; see `masking.zeroed`."""
        found = tensors(model)
        with torch.no_grad():
            fitted = self._fitted(found, groups, removed)
        saved = {name: found[name].clone() for name in fitted}
        try:
            with zeroed(model, groups, removed):
                with torch.no_grad():
                    for name, value in fitted.items():
                        found[name].copy_(value)
                    for name, channels in removed.items():  # what reads one may make another
                        for view in slices(found, groups, groups[name], channels):
                            view.zero_()
                yield model
        finally:
            with torch.no_grad():
                for name, tensor in saved.items():
                    found[name].copy_(tensor)

    def _fitted(
        self, found: Mapping[str, Tensor], groups: Groups, removed: Mapping[str, Sequence[int]]
    ) -> dict[str, Tensor]:
        """Return new values of what reads the channels and of the constants behind."""
        gone: dict[str, list[np.ndarray]] = {}  # of a weight, all that it reads of any group
        for name, channels in removed.items():
            for axis, positions in _columns(groups[name], channels, self.reads):
                gone.setdefault(axis.tensor, []).append(positions)
        values: dict[str, Tensor] = {}
        for name, parts in gone.items():
            read = self.reads[name]
            values[name], constant = _refit(read, np.concatenate(parts), found[name])
            if read.shift is not None:
                sign = 1 if read.shift == read.mixer.bias else -1
                before = values.get(read.shift, found[read.shift])
                values[read.shift] = before + sign * constant
        return values


def reconstruct(
    model: nn.Module,
    groups: Groups,
    scores: Scores,
    data: Calibration,
    *,
    progress: Progress | None = None,
) -> Reconstruction:
    """Find the order in which the channels of every group can go.

    Args:
        model: The dense model.
        groups: Its groups.
        scores: Scores for groups that no weight reads.
        data: Batches of inputs, a few hundred samples; no label is used.
        progress: See `prunella.progress`.

    Raises:
        TraceError: The model's course depends on the data, so batches cannot be run through it.
    """
    check_numbers(model, "reconstructing")
    reads = observe(model, data, or_silent(progress))
    values = dict(scores.values)
    errors: dict[str, np.ndarray] = {}
    found = tensors(model)
    inverses: dict[str, Tensor] = {}
    with or_silent(progress)("rank", len(groups)) as advance, torch.no_grad():
        for group in groups:
            readers = _readers(group, groups, reads, found, inverses)
            if readers:
                order, error = _eliminate(group.channels, readers)
                ranks = np.empty(group.channels)
                ranks[order] = np.arange(group.channels)
                values[group.name], errors[group.name] = ranks, error
            advance(1)
    return Reconstruction(Scores("reconstruction", values), errors, reads, fingerprint(data))


def observe(model: nn.Module, data: Calibration, progress: Progress) -> dict[str, Read]:
    """Take the moments of what every weight reads, in one pass over the data."""
    pairs = courses(model, data)
    named = tensors(model)
    found: dict[str, Read] = {}
    generator = torch.Generator().manual_seed(0)
    with evaluating(model), torch.no_grad(), progress("observe", len(pairs)) as advance:
        for number, (course, batch) in enumerate(pairs):
            mixing = {mixer.index: mixer for mixer in mixers(course.graph, course.nodes)}
            ends = branches(course, mixing.values(), named)
            at = lane(course, batch, named)
            for index in range(len(course.nodes)):
                made = at.run(index, run_node)
                mixer = mixing.get(index)
                if mixer is not None and _worth_it(mixer, named[mixer.weight]):
                    x = at.values[input_of(course.nodes[index]).name]
                    most = rows_wanted(mixer.matrix(named[mixer.weight]).shape[2], len(pairs))
                    chosen = sampled(mixer, made[0], most, generator, number)
                    rows = _rows(mixer, x, made[0], named[mixer.weight], chosen)
                    if mixer.weight not in found:
                        one, other = (no_moments(read, nothing) for read, nothing in rows)
                        shift = mixer.bias or ends[index].shift
                        found[mixer.weight] = Read(mixer, shift, (one, other))
                    for half, (read, nothing) in zip(found[mixer.weight].halves, rows, strict=True):
                        half.add(read, nothing)
                at.take(index, made)
            advance(1)
    return found


def _worth_it(mixer: Mixer, weight: Tensor) -> bool:
    # Where a conv group reads one channel, none can stand in for it.
    width = mixer.matrix(weight).shape[2]
    alone = mixer.spatial > 0 and mixer.ins(weight) == 1
    return weight.is_floating_point() and width <= WIDEST and not alone


def _rows(
    mixer: Mixer,
    x: Tensor,
    made: Tensor,
    weight: Tensor,
    chosen: tuple[Tensor, Tensor],
) -> list[tuple[Tensor, Tensor]]:
    """Return what is read, by halves of the batch, each with no columns of what is made."""
    halves = [rows_read(mixer, x, made, weight.shape[2:], half).float() for half in chosen]
    return [(read, read.new_zeros(*read.shape[:2], 0)) for read in halves]


@dataclass(eq=False)
class _Reader:
    """One conv group of a weight, while channels go.

    `inverse` is that of the damped covariance of its columns, `[ins, ins]`; `weight` is
    `[outs, ins]`, in units in which all it makes has variance 1; `columns[c]` lists what channel
    `channels[c]` of the group has, `[n, m]`.
    """

    inverse: Tensor
    weight: Tensor
    channels: Tensor
    columns: Tensor

    def errors(self, left: Tensor) -> Tensor:
        """Return what each of the channels still there (places in `channels`) would cost."""
        columns = self.columns[left]
        blocks = self.inverse[columns[:, :, None], columns[:, None, :]]
        parts = self.weight[:, columns].permute(1, 2, 0)  # [channels, m, outs]
        return torch.einsum("cmo,cmo->c", parts, torch.linalg.solve(blocks, parts))

    def remove(self, places: Tensor) -> float:
        """Let some channels go; return what they cost together."""
        columns = self.columns[places].reshape(-1)
        block, part = self.inverse[columns][:, columns], self.weight[:, columns]
        share = torch.linalg.solve(block, self.inverse[columns])
        cost = float((part.T * torch.linalg.solve(block, part.T)).sum())
        self.weight -= part @ share
        self.inverse.addmm_(self.inverse[:, columns], share, alpha=-1)  # without a copy
        # What is gone stays regular, so that nothing has to be cut out of the arrays.
        self.weight[:, columns] = 0
        self.inverse[columns] = 0
        self.inverse[:, columns] = 0
        self.inverse[columns, columns] = 1
        return cost


def _readers(
    group: Group,
    groups: Groups,
    reads: Mapping[str, Read],
    found: Mapping[str, Tensor],
    inverses: dict[str, Tensor],
) -> list[_Reader]:
    readers = []
    for axis, positions in group.axes.items():
        read = reads.get(axis.tensor)
        if read is None or axis.dim != read.mixer.into:
            continue
        mixer, weight = read.mixer, found[axis.tensor]
        square, _ = read.moments.centered()
        if axis.tensor not in inverses:
            inverses[axis.tensor] = torch.linalg.inv(damped(square, read.damping))
        kernel = weight[0, 0].numel() if mixer.spatial else 1
        matrix = mixer.matrix(weight).to(square.dtype)
        makes = torch.einsum("poi,pij,poj->", matrix, square, matrix).clamp_min(1e-30)
        size = square.shape[1] // kernel
        for part in range(mixer.parts):
            mine = positions // size == part
            here = np.flatnonzero(mine.all(1))
            if len(here) == 0:
                continue
            first = torch.from_numpy(positions[here] % size) * kernel
            columns = (first[:, :, None] + torch.arange(kernel)).flatten(1)
            readers.append(
                _Reader(
                    inverses[axis.tensor][part].clone(),
                    matrix[part] / makes.sqrt(),
                    torch.from_numpy(here).to(square.device),
                    columns.to(square.device),
                )
            )
    return readers


def damped(square: Tensor, share: float) -> Tensor:
    """Add a share of the mean of the diagonal to the diagonal, `[parts, ins, ins]`."""
    hold = share * square.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
    eye = torch.eye(square.shape[1], dtype=square.dtype, device=square.device)
    return square + hold[:, None, None] * eye


def _surprise(guess: Tensor, found: Tensor) -> float:
    """Return how unlikely a covariance is, up to a constant, where another was guessed."""
    factor, failed = torch.linalg.cholesky_ex(guess)
    if bool(failed.any()):
        return float("inf")
    volume = 2 * factor.diagonal(dim1=1, dim2=2).log().sum()
    # The trace of the one in units of the other, from random probes: exact, it costs more than all
    # the rest.
    generator = torch.Generator().manual_seed(0)
    shape = (*guess.shape[:2], min(_PROBES, guess.shape[1]))
    probes = torch.randn(shape, generator=generator, dtype=guess.dtype).to(guess.device)
    ratio = (torch.cholesky_solve(probes, factor) * (found @ probes)).sum() / shape[2]
    return float(volume + ratio)


def _eliminate(channels: int, readers: Sequence[_Reader]) -> tuple[np.ndarray, np.ndarray]:
    """Let all channels go; return their order and the error after each, `[channels + 1]`."""
    kind = readers[0].weight.dtype
    alive = torch.ones(channels, dtype=torch.bool)
    order: list[int] = []
    errors = np.zeros(channels + 1)
    places = []
    for reader in readers:
        place = torch.full((channels,), -1)
        place[reader.channels.cpu()] = torch.arange(len(reader.channels))
        places.append(place)
    wide = any(reader.inverse.shape[0] > _WIDE for reader in readers)
    while len(order) < channels:
        total = torch.zeros(channels, dtype=kind)
        for reader, place in zip(readers, places, strict=True):
            left = torch.nonzero(alive & (place >= 0))[:, 0]
            total[left] += reader.errors(place[left].to(reader.weight.device)).cpu()
        total[~alive] = torch.inf
        some = max((channels - len(order)) // (_FEWER if wide else _AT_ONCE), 1)
        gone = total.argsort(stable=True)[:some]
        cost = 0.0
        for reader, place in zip(readers, places, strict=True):
            mine = place[gone]
            if bool((mine >= 0).any()):
                cost += reader.remove(mine[mine >= 0].to(reader.weight.device))
        before = errors[len(order)]
        for i in range(len(gone)):
            errors[len(order) + 1 + i] = before + cost * (i + 1) / len(gone)
        alive[gone] = False
        order += gone.tolist()
    return np.array(order), errors


def _columns(
    group: Group, channels: Sequence[int], reads: Mapping[str, Read]
) -> Iterator[tuple[Axis, np.ndarray]]:
    """List the positions that channels have on every axis where they are read."""
    for axis, positions in group.axes.items():
        if axis.tensor in reads and axis.dim == reads[axis.tensor].mixer.into:
            yield axis, positions[list(channels)].reshape(-1)


def _refit(read: Read, gone: np.ndarray, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a weight without some positions to make what it made.

    Returns:
        The weight, zero there, and the constant that is then missing, `[outs]`.
    """
    mixer = read.mixer
    square, _ = read.moments.centered(centre=read.shift is not None)
    mean, _ = read.moments.means()
    before = mixer.matrix(weight).to(square.dtype)
    kernel = weight[0, 0].numel() if mixer.spatial else 1
    size = square.shape[1] // kernel
    here = square.new_ones(mixer.parts, size)
    here[gone // size, gone % size] = 0
    here = here.repeat_interleave(kernel, 1)
    left = square * here[:, :, None] * here[:, None, :]
    cross = here[:, :, None] * (square @ before.mT)
    fitted = least_squares(left, cross, before, read.damping) * here[:, None, :]
    constant = ((before - fitted) @ mean[:, :, None]).reshape(-1)
    return mixer.unmatrix(fitted, weight.shape).to(weight.dtype), constant.to(weight.dtype)
