"""Let the channels that stay take over what the removed ones did: least squares, without labels.

The dense model and the masked one run side by side over the calibration data, node by node. Where
channels are mixed, the masked model's weights are fitted anew, so that from what it has it computes
as nearly as possible what the dense model computes there:

    min over W, b:  |Y - X W - b|^2 + damping |W - W0|^2

where `X` is what the masked model reads (errors made before included, so they do not add up), `Y`
what the dense model makes, `W0` the weights there are. The damping is what serves best from one
half of the data to the other. At the end of a residual branch `Y` is moved by what the other branch
is off, so that the sum is what it was.

Source: He, Zhang, Sun 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", eq. 1 and
section 3.3 (here every consumer of a cut group, closed form, damped towards what there is).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunella.calibration import Calibration
from prunella.coupling import couple
from prunella.coupling.resizing import mask_from, resized
from prunella.masking import check_digest
from prunella.masking.slicing import zero_removed
from prunella.masking.spectral import estimates_cut, settle
from prunella.model.modes import copied, evaluating
from prunella.model.structure import check_numbers, device_of, tensors
from prunella.plan import Plan
from prunella.progress import Progress, or_silent
from prunella.repairing.branches import Branch, branches
from prunella.repairing.marching import courses, lane, within
from prunella.repairing.mixing import (
    WIDEST,
    Mixer,
    Moments,
    input_of,
    mixers,
    no_moments,
    rows_made,
    rows_read,
    rows_wanted,
    sampled,
)
from prunella.replaying import Lane, Step, keeping, run_node

_DAMPING = (1e-3, 3e-2, 1.0, 30.0)  # shares of the mean square of the inputs, to choose from


def compensate(
    model: nn.Module,
    plan: Plan,
    data: Calibration,
    *,
    progress: Progress | None = None,
) -> nn.Module:
    """Return a copy of the model whose kept weights make up for the removed ones.

    Every shape is as it was: `transform(compensate(model, plan, data), plan)` is the smaller model.

    Args:
        model: The model the plan was made for; left untouched.
        plan: What to keep.
        data: Batches of inputs; a few hundred samples. No label is used.
        progress: See `prunella.progress`.

    Raises:
        PlanMismatchError: The plan is for another model.
        TraceError: The model's course depends on the data, so batches cannot be run side by side.
    """
    check_digest(model, plan)
    check_numbers(model, "repairing")
    repaired = copied(model)
    dense, masked = tensors(model), tensors(repaired)
    with evaluating(model), torch.no_grad():
        for name, kept in plan.kept.items():
            if masked[name].is_floating_point():
                zero_removed(masked[name], kept)
        settle(masked, estimates_cut(repaired, plan.kept))
        pairs, steps = _start(model, plan, data, dense, masked)
        fitter = _Fitter(plan, dense, masked)
        _march(pairs, steps, fitter, or_silent(progress))
    with torch.no_grad():
        for name, _ in repaired.named_buffers():  # what the model itself wrote on the way
            if name not in fitter.shifted:
                masked[name].copy_(dense[name])
                zero_removed(masked[name], plan.kept.get(name, {}))
    return repaired


_LOG = logging.getLogger("prunella")


@dataclass(frozen=True)
class _Pair:
    """A batch on its way through both models."""

    dense: Lane
    masked: Lane


def _start(
    model: nn.Module,
    plan: Plan,
    data: Calibration,
    dense: Mapping[str, Tensor],
    masked: Mapping[str, Tensor],
) -> tuple[list[_Pair], list[Step]]:
    """Put every batch at the start, and make the masked model's step for each."""
    pairs: list[_Pair] = []
    steps: list[Step] = []
    known: dict[int, Step] = {}
    for course, batch in within(courses(model, data), device_of(model), 2):
        if id(course) not in known:
            groups = couple(course.graph, form=plan.form, heads=plan.heads)
            known[id(course)] = keeping(resized(groups, mask_from(groups, plan)))
        steps.append(known[id(course)])
        pairs.append(_Pair(lane(course, batch, dense), lane(course, batch, masked)))
    return pairs, steps


def _march(
    pairs: Sequence[_Pair], steps: Sequence[Step], fitter: "_Fitter", progress: Progress
) -> None:
    course = pairs[0].dense.course
    mixing = {mixer.index: mixer for mixer in mixers(course.graph, course.nodes)}
    ends = branches(course, mixing.values(), fitter.dense)
    with progress("repair", len(course.nodes)) as advance:
        for index in range(len(course.nodes)):
            made = [pair.dense.run(index, run_node) for pair in pairs]
            if index in mixing:
                fitter.fit(mixing[index], ends[index], pairs, [found[0] for found in made])
            for pair, found, step in zip(pairs, made, steps, strict=True):
                pair.dense.take(index, found)
                pair.masked.take(index, pair.masked.run(index, step))
            advance(1)


class _Fitter:
    """Fits one node after another; holds the tensors of both models.

    `shifted` names the means of batch norms that made up for a constant.
    """

    def __init__(
        self,
        plan: Plan,
        dense: Mapping[str, Tensor],
        masked: Mapping[str, Tensor],
    ) -> None:
        self.plan, self.dense, self.masked = plan, dense, masked
        self.shifted: set[str] = set()
        self._generator = torch.Generator().manual_seed(0)

    def fit(
        self, mixer: Mixer, branch: Branch, pairs: Sequence[_Pair], wanted: Sequence[Tensor]
    ) -> None:
        """Fit the weights of a node so that the masked model makes what the dense one does."""
        weight = self.masked[mixer.weight]
        beside = branch.beside if branch.beside in pairs[0].masked.values else None
        if not weight.is_floating_point() or not self._differs(mixer, beside, pairs):
            return
        width = mixer.matrix(weight).shape[2]
        wide = width > WIDEST
        halves = self._moments(mixer, branch, beside, pairs, wanted)
        moments = halves[0] + halves[1]
        if not moments.finite():
            _LOG.warning(
                "`%s` is not repaired: on the calibration data, what it reads or makes is not "
                "finite",
                mixer.weight,
            )
            return
        if wide:  # then only the mean is corrected
            fitted = mixer.matrix(weight)
            constant = (moments.y - moments.x) / moments.rows
        else:
            before = mixer.matrix(weight).to(moments.square.dtype)
            centre = mixer.bias is not None or branch.shift is not None
            fitted, constant = fit_well(halves, before, centre=centre)
        weight.copy_(mixer.unmatrix(fitted.to(weight.dtype), weight.shape))
        self._zero(mixer.weight)
        if mixer.bias is not None:
            own = self.masked[mixer.bias]
            own.copy_(constant.reshape(-1).to(own.dtype))
            self._zero(mixer.bias)
        elif branch.shift is not None:
            mean = self.masked[branch.shift]
            mean.copy_((self.dense[branch.shift] - constant.reshape(-1)).to(mean.dtype))
            self._zero(branch.shift)
            self.shifted.add(branch.shift)

    def _moments(
        self,
        mixer: Mixer,
        branch: Branch,
        beside: str | None,
        pairs: Sequence[_Pair],
        wanted: Sequence[Tensor],
    ) -> tuple[Moments, Moments]:
        """Take the moments of what the masked model reads and of what it shall make."""
        weight = self.masked[mixer.weight]
        width = mixer.matrix(weight).shape[2]
        most = rows_wanted(width, len(pairs))
        halves: list[Moments] = []
        for batch, (pair, made) in enumerate(zip(pairs, wanted, strict=True)):
            x = pair.masked.values[_input(mixer, pair)]
            chosen_rows = sampled(mixer, made, most, self._generator, batch)
            for half, chosen in enumerate(chosen_rows):
                read = rows_read(mixer, x, made, weight.shape[2:], chosen).float()
                aim = rows_made(mixer, made, chosen).float()
                if beside is not None:
                    off = pair.dense.values[beside] - pair.masked.values[beside]
                    steady = branch.steady().reshape(mixer.parts, 1, -1)
                    aim = aim + rows_made(mixer, off, chosen).float() / steady
                if mixer.given is not None:
                    given = pair.dense.values[mixer.given].float()
                    aim = aim - given.expand(mixer.outs(weight)).reshape(mixer.parts, 1, -1)
                if width > WIDEST:
                    read = read @ mixer.matrix(weight).float().mT
                if half == len(halves):
                    halves.append(no_moments(read, aim))
                halves[half].add(read, aim)
        return halves[0], halves[1]

    def _differs(self, mixer: Mixer, beside: str | None, pairs: Sequence[_Pair]) -> bool:
        return any(
            not torch.equal(pair.dense.values[name], pair.masked.values[name])
            for pair in pairs
            for name in (_input(mixer, pair), beside)
            if name is not None
        )

    def _zero(self, name: str) -> None:
        zero_removed(self.masked[name], self.plan.kept.get(name, {}))


def _input(mixer: Mixer, pair: _Pair) -> str:
    # Inputs of the model are named by how each batch gives them.
    return input_of(pair.masked.course.nodes[mixer.index]).name


def fit_well(
    halves: tuple[Moments, Moments], before: Tensor, *, centre: bool
) -> tuple[Tensor, Tensor]:
    """Fit `y = W x + b`, held to the weights there were as much as serves best.

    Args:
        halves: Moments of two halves of the data: what is fitted to one is judged on the other.
        before: The weights there were, `[parts, outs, ins]`.
        centre: Whether there can be a constant.

    Returns:
        Weights, `[parts, outs, ins]`, and constants, `[parts, outs]`.
    """

    def fitted(moments: Moments, damping: float) -> tuple[Tensor, Tensor]:
        weight = least_squares(*moments.centered(centre=centre), before, damping)
        x, y = moments.means()
        constant = y - (weight @ x[:, :, None])[:, :, 0]
        return weight, constant if centre else torch.zeros_like(constant)

    one, other = halves
    if min(one.rows, other.rows) == 0:
        return fitted(one + other, _DAMPING[-1])
    best = min(_DAMPING, key=lambda damping: other.unexplained(*fitted(one, damping)))
    return fitted(one + other, best)


def least_squares(square: Tensor, cross: Tensor, before: Tensor, damping: float) -> Tensor:
    """Fit `y = W x`, held to the weights there were.

    Args:
        square: Sums or means of `x x^T`, `[parts, ins, ins]`.
        cross: The same of `x y^T`, `[parts, ins, outs]`.
        before: The weights there were, `[parts, outs, ins]`; those of an input that is always zero
            stay.
        damping: Strength of the hold, as a share of the mean of the diagonal.

    Returns:
        Weights, `[parts, outs, ins]`.
    """
    hold = damping * square.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
    eye = torch.eye(square.shape[1], dtype=square.dtype, device=square.device)
    held = square + hold[:, None, None] * eye
    wanted = cross + hold[:, None, None] * before.mT
    factor, failed = torch.linalg.cholesky_ex(held)
    if bool(failed.any()):  # of rounding
        solved: Tensor = torch.linalg.solve(held, wanted)
    else:
        solved = torch.cholesky_solve(wanted, factor)
    return solved.mT
