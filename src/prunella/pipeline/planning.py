"""The plan of a round: of least predicted damage, best of several, or kept by the stopwatch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from prunella.allocating import Allocation, Damage, allocate_and_bound
from prunella.latency import LatencyModel
from prunella.latency.meeting import Met, meet
from prunella.latency.remaining import remaining
from prunella.model.carrying import plan_of
from prunella.pipeline.budgets import budget_of
from prunella.pipeline.context import Context
from prunella.pipeline.repairing import inputs_of, repairs
from prunella.plan import Budget, Group, Groups, Scores, milliseconds
from prunella.pruning.searching import Search, Task, orders, search
from prunella.sensitivity import Sensitivity


@dataclass(frozen=True)
class Planned:
    """A plan, and how it was found.

    Attributes:
        allocation: The plan, and how near it is to what was asked.
        how: What the stopwatch says of it, or what a search brought; "" where there was neither.
    """

    allocation: Allocation
    how: str = ""


def plan_for(
    context: Context,
    model: nn.Module,
    groups: Groups,
    target: Mapping[str, float],
    scores: Scores,
    damage: Damage,
    *,
    last: bool,
) -> Planned:
    """Make the plan for a target.

    With a budget on time the latency model will do on the way down. What is cut last is timed
    beside the dense model, and the plan made again, until the budget is kept by the stopwatch: as
    in `prunella.prune`.

    Args:
        context: Of the run.
        model: What is pruned: the dense model, or one that was pruned before.
        groups: Its groups.
        target: Shares of the dense model that may remain.
        scores: Of its channels.
        damage: What is predicted to be lost.
        last: Whether the target is the whole budget.
    """
    settings, budget = context.config.prune, budget_of(context, target)
    if settings.candidates > 1 and repairs(context):
        found = _search(context, model, groups, budget, scores, damage)
        return Planned(found.best.allocation, str(found))
    known = latency_model_of(context, model, groups)
    choose = partial(
        allocate_and_bound,
        groups,
        scores,
        damage=damage,
        multiple_of=settings.multiple_of,
        max_ratio=most(context, groups),
        latency_model=known,
    )
    if known is None or not last:
        return Planned(choose(budget))
    allocation, met = _timed(context, model, groups, budget, known, choose)
    return Planned(allocation, f"plans timed: {met.tries}; {met}")


def _search(
    context: Context,
    model: nn.Module,
    groups: Groups,
    budget: Budget,
    scores: Scores,
    damage: Damage,
) -> Search:
    settings, data = context.config.prune, inputs_of(context)
    task = Task(
        model,
        groups,
        orders(model, groups, scores, data, named=settings.criterion != "auto"),
        budget,
        damage,
        data,
        (context.example, {}),
        multiple_of=settings.multiple_of,
        max_ratio=most(context, groups),
    )
    return search(
        task,
        settings.candidates,
        seed=context.config.run.seed,
        workers=context.config.analyze.workers,
        progress=context.progress,
    )


def _timed(
    context: Context,
    model: nn.Module,
    groups: Groups,
    budget: Budget,
    known: LatencyModel,
    choose: Callable[..., Allocation],
) -> tuple[Allocation, Met]:
    dense = context.priced.latency
    assert dense is not None, "where there is a latency model, the time is predicted"

    def corrected(budget: Budget) -> Allocation:
        assert budget.latency is not None, "what is corrected is the latency"
        # A share is one of the dense model, and `groups` may be those of a pruned one.
        return choose(target=replace(budget, latency=f"{milliseconds(budget.latency, dense)}ms"))

    return meet(
        model,
        groups,
        (context.example, {}),
        replace(budget, latency=context.config.budget.latency),
        known,
        corrected,
        dense=context.dense,
        seconds=context.config.run.latency_seconds,
    )


def latency_model_of(context: Context, model: nn.Module, groups: Groups) -> LatencyModel | None:
    """Return the latency model of the dense model, or of a pruned one as it follows from that."""
    known, plan = context.latency_model, plan_of(model)
    if known is None or plan is None:
        return known
    return remaining(known, context.groups, groups, plan)


def most(context: Context, groups: Groups) -> dict[str, float]:
    """Return by group the largest ratio that leaves what `max_ratio` says of the dense model's."""
    dense = _dense_ones(context.groups, groups)
    left = 1 - context.config.prune.max_ratio
    return {
        group.name: max(0.0, 1 - left * dense.get(group.name, group).channels / group.channels)
        for group in groups
    }


def damage_of(context: Context, curves: Sensitivity, groups: Groups) -> Callable[[str, int], float]:
    """Predict damage; a group that only the pruned model has counts as the most fragile known."""
    dense = _dense_ones(context.groups, groups)

    def damage(name: str, kept: int) -> float:
        if name in dense:
            return curves.damage(name, kept)
        share = kept / groups[name].channels
        known = ((other, int(share * size)) for other, size in curves.channels.items())
        return max((curves.damage(other, left) for other, left in known), default=0.0)

    strange = [group.name for group in groups if group.name not in dense]
    if strange:
        context.note(
            "the sensitivity was measured on the dense model, which has no such channels as those "
            f"of {', '.join(strange[:3])}; they are treated as the most fragile ones"
        )
    return damage


def _dense_ones(dense: Groups, groups: Groups) -> dict[str, Group]:
    """Find the group of the dense model that each group is what is left of, where there is one.

    It has the same name, and channels of as many slices: of a layer that is down to its last head,
    the positions in that head are the channels, under the name that the heads had.
    """
    known = {group.name: group for group in dense}
    return {
        group.name: before
        for group in groups
        if (before := known.get(group.name)) is not None
        and all(
            places.shape[1] == before.axes[axis].shape[1]
            for axis, places in group.axes.items()
            if axis in before.axes
        )
    }
