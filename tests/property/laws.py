"""Laws that hold for every network, whatever it is made of."""

import random
from typing import Any

import torch

import prunella
from prunella.allocating.planning import make_plan, mask_of
from prunella.errors import BudgetError, NothingToPruneError
from tests import oracle


def targets(groups: prunella.Groups, seed: int) -> list[Any]:
    """An even ratio, and an uneven one: every group loses a share of its own."""
    draw = random.Random(seed)
    return [
        draw.choice((0.25, 0.5, 0.75)),
        {g.name: draw.choice((0.0, 0.3, 0.6, 0.9)) for g in groups},
    ]


def made(groups: prunella.Groups, scores: prunella.Scores, target: Any) -> prunella.Plan | None:
    try:
        return prunella.allocate(groups, scores, target)
    except NothingToPruneError:
        return None


def partition(model: torch.nn.Module, groups: prunella.Groups) -> None:
    """Every position of an axis belongs to one channel of one group, or the whole axis to none."""
    owned: dict[Any, list[int]] = {}
    shapes = {name: tensor.shape for name, tensor in oracle.tensors(model).items()}
    for group in (*groups, *groups.frozen):
        assert bool(group.frozen) == (group in groups.frozen)
        for axis, positions in group.axes.items():
            assert positions.shape[0] == group.channels
            owned.setdefault(axis, []).extend(positions.reshape(-1).tolist())
    for axis, positions in owned.items():
        assert len(positions) == len(set(positions)), f"{axis} has a position in two channels"
        size = groups.axes[axis].size if axis in groups.axes else shapes[axis.tensor][axis.dim]
        assert set(positions) <= set(range(size))
        if axis in groups.axes:
            assert len(positions) == size, f"{axis} has a position in no channel"


def budgets(groups: prunella.Groups, scores: prunella.Scores) -> None:
    """A budget is never exceeded; a smaller one never costs more; the least one named works."""
    after: list[int] = []
    for share in (0.9, 0.6, 0.35):
        limit: float | int = share
        try:
            plan = prunella.allocate(groups, scores, prunella.Budget(macs=share))
        except BudgetError as error:
            limit = error.reachable
            plan = prunella.allocate(groups, scores, prunella.Budget(macs=limit))
        assert plan.after.macs <= (limit if limit > 1 else limit * plan.before.macs)
        after.append(plan.after.macs)
        if limit > 1:
            break  # what is smaller cannot be met either
    assert after == sorted(after, reverse=True)


def costs(model: torch.nn.Module, plan: prunella.Plan, pruned: torch.nn.Module, x: Any) -> None:
    """What was predicted is what is counted."""
    assert plan.before.macs == prunella.count_macs(model, x)
    assert plan.before.params == prunella.count_params(model)
    assert plan.after.macs == prunella.count_macs(pruned, x)
    assert plan.after.params == prunella.count_params(pruned)
    assert plan.after.params < plan.before.params


def written_down(groups: prunella.Groups, plan: prunella.Plan) -> None:
    """A plan survives JSON, and follows from the channels it keeps."""
    assert prunella.Plan.from_json(plan.to_json()) == plan
    assert make_plan(groups, mask_of(groups, plan.channels)).kept == plan.kept
