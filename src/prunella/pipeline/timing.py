"""The plan of a round; that of the whole budget on time is made to keep it on the stopwatch."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from torch import nn

from prunella.allocating import Allocation, told
from prunella.latency import LatencyModel
from prunella.latency.meeting import Met, meet
from prunella.latency.remaining import remaining
from prunella.model.carrying import plan_of
from prunella.pipeline.budgets import budget_of
from prunella.pipeline.context import Context
from prunella.plan import Budget, Groups, Plan, milliseconds


def plan_for(
    context: Context,
    model: nn.Module,
    groups: Groups,
    target: Mapping[str, float],
    choose: Callable[..., Allocation],
    *,
    last: bool,
) -> tuple[Plan, Met | None]:
    """Make the plan for a target.

    On the way down the latency model will do. What is cut last is timed beside the dense model, and
    the plan made again, until the budget is kept by the stopwatch: as in `prunella.prune`.

    Args:
        context: Of the run.
        model: What is pruned: the dense model, or one that was pruned before.
        groups: Its groups.
        target: Shares of the dense model that may remain.
        choose: Makes the plan, given `target` (a budget) and `latency_model`.
        last: Whether the target is the whole budget.

    Returns:
        The plan, and what the stopwatch says of it where it was asked.
    """
    budget = budget_of(context, target)
    known = latency_model_of(context, model, groups)
    choose = partial(choose, latency_model=known)
    if known is None or not last:
        return told(choose(target=budget)), None
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
