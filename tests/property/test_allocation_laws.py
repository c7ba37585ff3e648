"""The laws of allocation, on random networks with random damage."""

from itertools import pairwise

import numpy as np
import pytest

import prunella
from prunella.allocating import Allocation, Damage, allocate_and_bound
from prunella.allocating.planning import mask_of
from prunella.costs import predict
from prunella.errors import BudgetError
from tests.property.networks import build, describe, images

NETWORKS = 12
SHARES = (0.9, 0.8, 0.72, 0.65, 0.6, 0.5, 0.42, 0.35, 0.3, 0.2)
_CLOSE = 1e-4


def setting(seed: int) -> tuple[prunella.Groups, prunella.Scores, Damage]:
    model = build(describe(seed, most=4))
    groups = prunella.couple(prunella.trace(model, images(seed + 1)))
    draw = np.random.default_rng(seed)
    curves = {
        group.name: np.cumsum(np.append(0.0, draw.exponential(size=group.channels) ** 2))
        for group in groups
    }
    scores = prunella.score(model, groups, "random")
    return groups, scores, lambda name, kept: float(curves[name][::-1][kept])


def allocated(
    groups: prunella.Groups, scores: prunella.Scores, damage: Damage | None
) -> list[tuple[int, Allocation]]:
    """Allocate under ever smaller budgets, down to what can be reached."""
    found = []
    for share in SHARES:
        try:
            one = allocate_and_bound(groups, scores, prunella.Budget(macs=share), damage)
        except BudgetError:
            break
        found.append((int(share * one.plan.before.macs), one))
    return found


@pytest.mark.parametrize("seed", range(NETWORKS))
def test_budgets_are_kept_and_used_and_a_smaller_one_never_does_better(seed: int) -> None:
    groups, scores, damage = setting(seed)
    if not len(groups):
        return
    for curves in (damage, None):
        found = allocated(groups, scores, curves)
        macs = [one.plan.after.macs for _, one in found]
        assert all(left <= limit for left, (limit, _) in zip(macs, found, strict=True))
        assert macs == sorted(macs, reverse=True)
        if curves is not None:
            lost = [one.damage or 0.0 for _, one in found]
            assert all(a <= b * (1 + _CLOSE) for a, b in pairwise(lost))
            assert all(one.gap is not None and one.gap < 1e-3 for _, one in found)
        for limit, one in found:
            if one.plan.after.macs < 0.99 * limit:
                nothing_fits_between(groups, one.plan, limit)


def nothing_fits_between(groups: prunella.Groups, plan: prunella.Plan, limit: int) -> None:
    """Where a budget is not used up, no group could keep one channel more."""
    for group in groups:
        gone = sorted(set(range(group.channels)) - set(plan.channels[group.name]))
        if gone and on_its_own(groups, group.name):
            mask = mask_of(groups, plan.channels)
            mask[group.start + gone[0]] = True
            assert predict(groups, mask).macs > limit


def on_its_own(groups: prunella.Groups, name: str) -> bool:
    """Say whether a group's count is bound to nothing."""
    group = groups[name]
    numbers = set(range(group.start, group.start + group.channels))
    return not any(numbers & set(block.rows.reshape(-1).tolist()) for block in groups.blocks)


@pytest.mark.parametrize("seed", range(NETWORKS, NETWORKS + 6))
def test_several_budgets_hold_together(seed: int) -> None:
    groups, scores, damage = setting(seed)
    if not len(groups):
        return
    shares = {"macs": 0.7, "params": 0.6, "weight_bytes": 0.65, "activation_bytes": 0.95}
    lost = 0.0
    for factor in (1.0, 0.9, 0.8):
        budget = prunella.Budget(**{name: factor * share for name, share in shares.items()})
        try:
            found = allocate_and_bound(groups, scores, budget, damage)
        except BudgetError:
            break
        for name, limit in budget.resolve(found.plan.before).items():
            assert getattr(found.plan.after, name) <= limit
        assert found.damage is not None
        assert found.damage >= lost * (1 - _CLOSE)
        lost = found.damage
