"""What budgets are predicted to cost, before anything is pruned or trained."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from prunella import sensitivity as analysis
from prunella import tasks
from prunella.allocating import allocate_and_bound
from prunella.calibration import Calibration
from prunella.errors import BudgetError, NothingToPruneError
from prunella.finetuning.feeding import own_chance
from prunella.finetuning.fingerprints import DRAWS
from prunella.model.examples import Arguments
from prunella.pipeline.budgets import asked as budgeted
from prunella.pipeline.budgets import budget_of
from prunella.pipeline.context import Context, share_of
from prunella.pipeline.peers import by_first
from prunella.pipeline.planning import damage_of, most
from prunella.pipeline.remembering import Made, remembered
from prunella.pipeline.repairing import ranking
from prunella.pipeline.stages import counted, foundation, judge_of
from prunella.plan import Plan
from prunella.scoring import score
from prunella.sensitivity import Sensitivity

STEPS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
SAMPLES = 64

log = logging.getLogger("prunella")


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is predicted of one budget.

    Attributes:
        budget: Shares of the dense model that may remain, by name.
        left: Shares of the dense model's costs that remain, by name.
        latency: Milliseconds that are predicted to remain; None where no budget is on time.
        metric: The metric on the valid split without finetuning, as the sum of what every group
            alone does to it; never worse than the worst that was seen.
        knee: Whether less costs more and more from here.
        asked: Whether it is the budget in the settings.
        groups: For every group: name, channels and how many are kept.
    """

    budget: Mapping[str, float]
    left: Mapping[str, float]
    metric: float
    latency: float | None = None
    knee: bool = False
    asked: bool = False
    groups: tuple[tuple[str, int, int], ...] = ()


def known_or_estimated(context: Context) -> tuple[Sensitivity, str]:
    """Return the sensitivity on record where there is one, else a quick estimate, and which."""
    _, inputs = foundation(context)
    found = by_first(context.peers, lambda: context.space.find("sensitivity", inputs))
    if found.entry is not None:
        return Sensitivity.from_json(str(found.entry.payload["sensitivity"])), "measured"
    if found.changed:
        log.info("what was measured is not used: %s changed", found.changed)
    return _estimated(context), f"estimated on {SAMPLES} samples"


def _estimated(context: Context) -> Sensitivity:
    settings = context.config.analyze
    task, inputs = foundation(context)

    def make() -> Made:
        began = time.perf_counter()
        ranked = ranking(context, context.dense, context.groups)
        log.info("estimating the sensitivity of %d groups", len(context.groups))
        with counted(context.progress, "estimate") as progress:
            found = analysis.estimate(
                context.dense,
                context.groups,
                ranked.scores,
                _samples(context, SAMPLES),
                judge_of(context, task),
                metric=task.metric.name,
                higher_is_better=task.metric.higher_is_better,
                ratios=settings.ratios,
                cut=ranked.cut,
                progress=progress,
            )
        return {"sensitivity": found.to_json(), "seconds": time.perf_counter() - began}, ()

    entry = remembered(context, "estimate", {**inputs, "samples": SAMPLES}, make)
    return Sensitivity.from_json(str(entry.payload["sensitivity"]))


def _samples(context: Context, count: int) -> Calibration:
    """Take the first samples of the split that groups are judged on; whole batches if need be."""
    task = share_of(context.task, context.config.analyze.split, context.config.analyze.share)
    found: list[Arguments] = []
    with own_chance(DRAWS, context.device):
        for batch in tasks.open_split(task, context.config.analyze.split):
            args = tasks.positional(task, tasks.to_device(batch, context.device))
            leaves = pytree.tree_leaves(args)
            lengths = {len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()}
            size = lengths.pop() if len(lengths) == 1 else count
            if size > count:
                args = pytree.tree_map_only(Tensor, partial(_first, count=count), args)
            found.append((args, {}))
            count -= size
            if count <= 0:
                break
    return Calibration(found)


def _first(tensor: Tensor, count: int) -> Tensor:
    return tensor[:count] if tensor.dim() else tensor


def forecasts(context: Context, curves: Sensitivity) -> tuple[list[Forecast], str]:
    """Predict the metric for a row of budgets, and for the one in the settings.

    Of several budgets in the settings the first is varied, and the others are kept to in every row.

    Returns:
        The forecasts, the largest budget first, and why there are none below the last; "".
    """
    asked = budgeted(context)
    name = next(iter(asked), "macs")
    targets = {share: asked | {name: share} for share in STEPS}
    if asked:
        targets = {s: t for s, t in targets.items() if t != asked} | {asked[name]: asked}
    rows, why = [], ""
    for share in sorted(targets, reverse=True):
        try:
            rows.append(forecast(context, curves, targets[share]))
        except NothingToPruneError:
            continue  # of so easy a budget there is nothing to say
        except BudgetError as error:
            why = str(error)
            break
        if targets[share] == asked:
            rows[-1] = replace(rows[-1], asked=True)
    at = knee([1 - row.left[name] for row in rows], [_drop(curves, row) for row in rows])
    return [replace(row, knee=i == at) for i, row in enumerate(rows)], why


def forecast(context: Context, curves: Sensitivity, target: Mapping[str, float]) -> Forecast:
    """Make the plan for a budget (shares of the dense model), and predict what it does."""
    groups, dense = context.groups, context.priced
    scores = score(context.dense, groups)  # which channels go changes no cost and no prediction
    plan = allocate_and_bound(
        groups,
        scores,
        budget_of(context, target),
        damage_of(context, curves, groups),
        multiple_of=context.config.prune.multiple_of,
        max_ratio=most(context, groups),
        latency_model=context.latency_model,
    ).plan
    kept = {name: len(channels) for name, channels in plan.channels.items()}
    return Forecast(
        budget=dict(target),
        left={
            name: left / whole
            for name, whole in asdict(dense).items()
            if whole and (left := getattr(plan.after, name)) is not None
        },
        metric=_predicted(curves, plan, kept),
        latency=plan.after.latency,
        groups=tuple((g.name, g.channels, kept.get(g.name, g.channels)) for g in groups),
    )


def _predicted(curves: Sensitivity, plan: Plan, kept: Mapping[str, int]) -> float:
    loss = sum(curves.damage(name, count) for name, count in kept.items() if name in plan.channels)
    seen = [value for curve in curves.values.values() for value in (*curve, curves.baseline)]
    if curves.higher_is_better:
        return max(curves.baseline - loss, min(seen))
    return min(curves.baseline + loss, max(seen))


def _drop(curves: Sensitivity, row: Forecast) -> float:
    return abs(curves.baseline - row.metric)


def knee(removed: Sequence[float], lost: Sequence[float]) -> int:
    """Return the place where the curve of losses is farthest below a straight line.

    Both are scaled to 1 at their largest, as by Satopaa et al. 2011 ("Finding a Kneedle in a
    Haystack"), and begin at 0 where nothing is removed. -1 where nothing is known.

    Example:
        >>> knee([0.1, 0.3, 0.5, 0.7], [0.0, 0.01, 0.3, 0.8])
        1
    """
    if not removed:
        return -1
    x = torch.tensor([0.0, *removed], dtype=torch.float64)
    y = torch.tensor([0.0, *lost], dtype=torch.float64)
    gain = x / x.max().clamp_min(1e-12) - y / y.max().clamp_min(1e-12)
    return int(gain[1:].argmax())
