"""All stages in one call: `prune(model, example_inputs, macs=0.5)`."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, Literal

from torch import nn

from prunella.allocating import Damage, allocate_and_bound, told
from prunella.allocating.allocation import MaxRatio
from prunella.allocating.multiples import MultipleOf
from prunella.calibration import Data
from prunella.calibration import calibration as read
from prunella.certifying import Certificate
from prunella.coupling import Exclude, couple, listed
from prunella.errors import CertificateError, ConfigError, CouplingError, TransformError
from prunella.graph import Graph
from prunella.latency import LatencyModel
from prunella.latency.meeting import Met
from prunella.model.structure import check_numbers, device_of
from prunella.plan import Budget, Form, Groups, Heads, Plan
from prunella.progress import Progress
from prunella.pruning.probing import faithful
from prunella.pruning.searching import Search, Task, check_search, halves, orders, search
from prunella.pruning.timing import clock_for
from prunella.repairing.compensating import compensate
from prunella.repairing.reconstructing import reconstruct
from prunella.runtimes import Runtime
from prunella.scoring import score
from prunella.scoring.criteria import Criterion
from prunella.sensitivity.valuing import value
from prunella.tracing import Inputs, called_with, trace
from prunella.transforming import transform_and_prove, with_scales

log = logging.getLogger("prunella")


@dataclass(frozen=True)
class Summary:
    """What was removed, and what could not be.

    `search` is there where several plans were tried, `latency` where time was budgeted.
    """

    plan: Plan
    groups: Groups
    search: Search | None = None
    latency: Met | None = None

    def __str__(self) -> str:
        """Return a table for people."""
        before, after = self.plan.before, self.plan.after
        lines = [
            f"{'':12}{'dense':>16}{'pruned':>16}{'left':>9}",
            f"{'MACs':12}{before.macs:>16,}{after.macs:>16,}{_share(after.macs, before.macs):>9}",
            f"{'parameters':12}{before.params:>16,}{after.params:>16,}"
            f"{_share(after.params, before.params):>9}",
            f"channels kept in {len(self.groups)} groups:",
        ]
        form = {"class": "the model's own class", "graph": "the captured graph, rewritten"}
        lines.insert(3, f"form: {form[self.plan.form]}")
        if self.search is not None:
            lines.insert(4, str(self.search))
        if self.latency is not None:
            lines.insert(4, f"latency: {self.latency}")
        for name, kept in self.plan.channels.items():
            lines.append(f"  {name:40} {len(kept):>6} of {self.plan.sizes[name]}")
        lines.append(f"frozen: {len(self.groups.frozen)} groups")
        lines += [f"  {reason}" for reason in self.groups.why_frozen()]
        return "\n".join(lines)


def _share(after: int, before: int) -> str:
    return f"{after / before:.1%}" if before else "-"


@dataclass(frozen=True)
class PruneResult:
    """A pruned model, the plan that led to it, its proof, and a summary to print."""

    model: nn.Module
    plan: Plan
    certificate: Certificate
    summary: Summary

    @property
    def form(self) -> Form:
        """What came back: "class", the user's own, or "graph", the captured graph rewritten."""
        return self.plan.form


def prune(  # noqa: PLR0913 - one call for all stages
    model: nn.Module,
    example_inputs: Inputs,
    *,
    macs: float | int | str | None = None,
    params: float | int | str | None = None,
    weight_bytes: float | int | str | None = None,
    activation_bytes: float | int | str | None = None,
    latency: float | str | None = None,
    runtime: Runtime | str | None = None,
    latency_model: LatencyModel | None = None,
    ratio: float | Mapping[str, float] | None = None,
    calibration: Data | None = None,
    criterion: str | Criterion | None = None,
    damage: Damage | None = None,
    repair: bool | None = None,
    candidates: int = 1,
    seed: int = 0,
    workers: int = 1,
    seconds: float | None = None,
    multiple_of: MultipleOf = 1,
    max_ratio: MaxRatio = 1.0,
    exclude: Exclude | Iterable[Exclude] = (),
    form: Form | Literal["auto"] = "auto",
    heads: Heads = "whole",
    example_kwargs: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> PruneResult:
    """Trace, couple, score, allocate, repair and transform in one call.

    With `calibration`, a few hundred inputs without labels, all that can be done without training
    is done: channels go that others can stand in for (`reconstruct`), a budget is spent where
    outputs move least (`value`), and the weights that stay make up for those that go
    (`compensate`). Without it, weights alone decide.

    Groups whose size is written into the model's code are left whole, or, where they are many, the
    captured graph comes back in the place of the class; the summary says which and names the lines.

    Args:
        model: Any module; left untouched.
        example_inputs: A tensor, or a tuple of positional arguments.
        macs: Budget: multiply-accumulates that may remain, a share (0.5, "50%") or a count.
        params: Budget: parameters that may remain, likewise. Several budgets may be given.
        weight_bytes: Budget: bytes of parameters and buffers.
        activation_bytes: Budget: bytes of activations at the worst moment of a forward pass.
        latency: Budget: time of one forward of the example inputs on `runtime`, a share or a time
            with its unit ("8ms"). The pruned model is timed, and the plan made anew until it keeps
            the budget; `summary.latency` says what was asked and what came.
        runtime: Where the model will run, e.g. "onnxruntime:threads=1", see `prunella.runtimes`.
        latency_model: Of this model there (`prunella.latency.profile`); unset: measured now, or
            read from the user's cache.
        ratio: Instead of a budget: the share of channels every group loses, or one by group name.
        calibration: Inputs like those the model is for, see `prunella.calibration`: a tensor, a
            list of batches, a data loader (what it holds beyond the inputs is not looked at).
        criterion: How channels are scored; unset: by reconstruction where there are calibration
            data, else by their weights.
        damage: Predicted loss by group and kept channels (`Sensitivity.damage`); unset: measured
            on the calibration data, where there are some and no criterion is named. With a name,
            scores alone decide how much each group loses, too.
        repair: Whether what remains makes up for what went; unset: where there are calibration
            data.
        candidates: How many plans to try, each within the budget, at most. With more than 1, each
            is repaired with one half of the calibration data and judged on the other, and the best
            is kept; where no criterion is named, others are tried too. See `searching.search`.
        seed: Of the draws of plans; the same seed, the same plans.
        workers: In how many processes plans are tried, on the CPU.
        seconds: After so long no further plan is tried; with `candidates`. What comes before and
            after, measuring and the last repair, is not counted.
        multiple_of: Every group that is cut keeps a multiple of so many channels.
        max_ratio: The largest ratio that groups lose under a budget, unless it cannot be kept
            otherwise: one number, or one by group name. A run takes 0.8.
        exclude: Modules to leave whole, by name, glob, regular expression or class; one or several.
        form: "class": the pruned model is of the user's own class, and what its code does not allow
            stays. "graph": it is the captured graph, rewritten, which trains and saves like any
            module. "auto": the class, unless sizes spelled out in its code hold back much.
        heads: "whole": attention loses whole heads. "inside": all heads stay, and each loses
            equally many of its positions.
        example_kwargs: Keyword arguments.
        progress: See `prunella.progress`.

    Returns:
        The smaller model, the plan, the certificate, a summary.

    Raises:
        PrunellaError: Each stage raises its own; the model is left untouched.

    Example:
        >>> import torch, prunella
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
        >>> prunella.prune(net, torch.randn(1, 3, 8, 8), ratio=0.5).model[0].out_channels
        8
    """
    check_numbers(model, "pruning")
    target = _target((macs, params, weight_bytes, activation_bytes, latency), ratio)
    if repair and calibration is None:
        raise ConfigError(
            "`repair` fits weights to the activations of data; give some as `calibration`, a few "
            "hundred inputs without labels"
        )
    clock = clock_for(latency, runtime, latency_model, candidates, progress)
    check_search(candidates, seed, workers, seconds, model)
    if candidates > 1 and (calibration is None or ratio is not None or repair is False):
        raise ConfigError(
            f"{candidates=} are plans within a budget, each judged after its repair: give a budget "
            "and `calibration` data, and leave `repair` on; or leave out `candidates`"
        )
    args, kwargs = called_with(example_inputs, example_kwargs)
    groups = choose_form(trace(model, args, kwargs), listed(exclude), form, heads)
    data = None if calibration is None else read(calibration, len(args), device_of(model))
    if data is not None and candidates > 1:
        halves(data)  # what cannot be split is said now, not after minutes

    def cut(
        groups: Groups,
    ) -> tuple[nn.Module, Plan, Certificate, Search | None, Met | None]:
        named = None if criterion == "auto" else criterion
        scores = score(model, groups) if named is None else score(model, groups, named, data)
        price = damage
        if data is not None and named is None:
            found = reconstruct(model, groups, scores, data, progress=progress)
            scores = found.scores
            if price is None and isinstance(target, Budget):
                price = value(model, groups, found, data, progress=progress).damage
        tried = met = None
        if candidates > 1 and data is not None and isinstance(target, Budget):
            task = Task(
                model,
                groups,
                orders(model, groups, scores, data, named=named is not None),
                target,
                price,
                data,
                (args, kwargs),
                multiple_of=multiple_of,
                max_ratio=max_ratio,
            )
            tried = search(
                task, candidates, seed=seed, workers=workers, seconds=seconds, progress=progress
            )
            chosen = tried.best.allocation
        else:
            choose = partial(
                allocate_and_bound,
                groups,
                scores,
                damage=price,
                multiple_of=multiple_of,
                max_ratio=max_ratio,
            )
            if clock is not None and isinstance(target, Budget):
                chosen, met = clock.plan(model, groups, (args, kwargs), target, choose)
            else:
                chosen = choose(target)
        plan = with_scales(model, told(chosen), groups, (args, kwargs))
        healed = model
        if data is not None and repair is not False:
            healed = compensate(model, plan, data, progress=progress)
        pruned, proof = transform_and_prove(healed, plan, args, kwargs, groups)
        return pruned, plan, proof, tried, met

    try:
        pruned, plan, proof, tried, met = cut(groups)
    except (TransformError, CertificateError, CouplingError):
        free = faithful(model, groups, args, kwargs)
        if free is groups:
            raise
        groups = free
        pruned, plan, proof, tried, met = cut(groups)
    return PruneResult(pruned, plan, proof, Summary(plan, groups, tried, met))


def _target(
    bounds: tuple[float | int | str | None, ...], ratio: float | Mapping[str, float] | None
) -> Budget | float | Mapping[str, float]:
    if (ratio is None) == all(bound is None for bound in bounds):
        raise ConfigError("give a budget (`macs`, `params`, ...) or a `ratio`, and not both")
    return Budget(*bounds) if ratio is None else ratio


def choose_form(
    graph: Graph,
    exclude: tuple[Exclude, ...] = (),
    form: Form | Literal["auto"] = "auto",
    heads: Heads = "whole",
) -> Groups:
    """Couple in the form asked for; "auto" takes the user's own class wherever it will do.

    The class will not do where sizes that its code spells out hold more than a tenth of the
    multiply-accumulates.
    """
    if form == "graph" and graph.recorded:
        raise ConfigError(
            "this model could only be captured as one recorded run, as its course depends on the "
            "data, or it calls `torch.vmap`; such a graph cannot take the model's place. Use "
            'form="class"'
        )
    groups = couple(graph, exclude, "class" if form == "auto" else form, heads)
    if form == "auto" and groups.code_binds and not graph.recorded:
        freer = couple(graph, exclude, "graph", heads)
        if held_back(groups, freer) > _HELD:
            return freer
    return groups


_HELD = 0.1


def held_back(groups: Groups, freer: Groups) -> float:
    """Return the share of multiply-accumulates that only `freer` groups could lower."""
    free = {axis for group in groups for axis in group.axes}
    more = [group for group in freer if not free & set(group.axes)]
    numbers = {n for group in more for n in range(group.start, group.start + group.channels)}
    costs = [
        (
            prod((term.factor, *map(len, term.dims))),
            any(numbers & set(d.tolist()) for d in term.dims),
        )
        for term in freer.terms
    ]
    return sum(n for n, held in costs if held) / max(sum(n for n, _ in costs), 1)
