"""Allocation: the best choice there is, several budgets, multiples, largest ratios."""

import itertools
import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunella
from prunella.allocating import Damage, allocate_and_bound, exact
from prunella.allocating.choosing import Chooser
from prunella.allocating.levels import ladder
from prunella.allocating.multiples import multiples
from prunella.allocating.problem import Problem
from prunella.costs import count_activation_bytes, count_weight_bytes
from prunella.costs.memory import peak
from prunella.costs.predicted import byte_terms, evaluate, mac_terms, param_terms
from prunella.errors import BudgetError, ConfigError, NothingToPruneError
from prunella.plan import Costs, Plan
from tests.models import ZOO

CASES = ["chain", "residual", "concat", "chunk", "depthwise", "grouped_conv", "shuffle"]


def traced(name: str) -> tuple[nn.Module, Any, prunella.Groups, prunella.Scores]:
    model, inputs = ZOO[name].model(), ZOO[name].inputs()
    groups = prunella.couple(prunella.trace(model, inputs))
    return model, inputs, groups, prunella.score(model, groups)


def drawn(groups: prunella.Groups, seed: int, bumpy: bool = False) -> Damage:
    """Draw a curve for every group, decreasing in what is kept unless `bumpy`."""
    draw = np.random.default_rng(seed)
    curves = {}
    for group in groups:
        steps = draw.exponential(size=group.channels) * draw.uniform(0.1, 2)
        curve = np.concatenate([[0.0], np.cumsum(steps * (draw.random(group.channels) < 0.8))])
        curves[group.name] = draw.permutation(curve) if bumpy else curve
    return lambda name, kept: float(curves[name][len(curves[name]) - 1 - kept])


def total(plan: Plan, damage: Damage) -> float:
    return sum(damage(name, len(kept)) for name, kept in plan.channels.items())


def brute_force(
    groups: prunella.Groups, scores: prunella.Scores, limits: dict[str, int], damage: Damage
) -> float:
    """Return the least damage over every combination of levels that keeps the limits."""
    chooser = Chooser(groups, scores)
    free = multiples(groups, chooser.clusters, 1)
    ladders = [
        ladder(chooser, cluster, asked).counts
        for cluster, asked in zip(chooser.clusters, free, strict=True)
    ]
    memory = peak(chooser.layout.flow)
    of = {
        "macs": mac_terms(groups),
        "params": param_terms(groups),
        "weight_bytes": byte_terms(groups),
    }
    samples = groups.graph.samples
    best = np.inf
    for counts in itertools.product(*ladders):
        lost = 0.0
        for cluster, found in zip(chooser.clusters, counts, strict=True):
            for name in cluster.groups:
                kept = sum(
                    int(n) for a, n in zip(cluster.atoms, found, strict=True) if a.group == name
                )
                lost += damage(name, kept)
        if lost < best:
            mask = chooser.mask(counts)
            costs = {
                name: memory.evaluate(mask) // samples
                if name == "activation_bytes"
                else evaluate(of[name], mask) // (samples if name == "macs" else 1)
                for name in limits
            }
            if all(costs[name] <= limit for name, limit in limits.items()):
                best = lost
    return best


@pytest.mark.parametrize("bumpy", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_no_combination_of_levels_does_less_damage(name: str, bumpy: bool) -> None:
    _, _, groups, scores = traced(name)
    for seed, share in enumerate((0.8, 0.6, 0.4)):
        damage = drawn(groups, seed, bumpy)
        try:
            found = allocate_and_bound(groups, scores, prunella.Budget(macs=share), damage)
        except BudgetError:
            continue
        limit = int(share * found.plan.before.macs)
        best = brute_force(groups, scores, {"macs": limit}, damage)
        assert found.damage == pytest.approx(total(found.plan, damage))
        assert found.damage == pytest.approx(best, rel=1e-4, abs=1e-4)
        assert found.gap == pytest.approx(0, abs=1e-6)
        assert found.plan.after.macs <= limit


@pytest.mark.parametrize("name", ["residual", "concat", "depthwise"])
def test_nor_under_four_budgets_at_once(name: str) -> None:
    model, inputs, groups, scores = traced(name)
    shares = {"macs": 0.7, "params": 0.75, "weight_bytes": 0.8, "activation_bytes": 0.85}
    damage = drawn(groups, 3)
    found = allocate_and_bound(groups, scores, prunella.Budget(**shares), damage)
    before, after = found.plan.before, found.plan.after
    limits = {cost: int(share * getattr(before, cost)) for cost, share in shares.items()}
    for cost, limit in limits.items():
        assert getattr(after, cost) <= limit
    best = brute_force(groups, scores, limits, damage)
    assert found.damage == pytest.approx(best, rel=1e-4, abs=1e-4)
    pruned = prunella.transform(model, found.plan, inputs)
    assert after.weight_bytes == count_weight_bytes(pruned)
    assert after.activation_bytes == count_activation_bytes(pruned, inputs)
    assert before.activation_bytes == count_activation_bytes(model, inputs)


@pytest.mark.parametrize("cost", ["params", "weight_bytes", "activation_bytes"])
@pytest.mark.parametrize("damaging", [False, True])
def test_each_budget_alone(cost: str, damaging: bool) -> None:
    _, _, groups, scores = traced("residual")
    damage = drawn(groups, 1) if damaging else None
    plan = prunella.allocate(groups, scores, prunella.Budget(**{cost: "60%"}), damage)
    dense, left = getattr(plan.before, cost), getattr(plan.after, cost)
    assert 0.4 * dense < left <= 0.6 * dense
    with pytest.raises(BudgetError, match=f"{cost} of .*smallest possible leaves") as caught:
        prunella.allocate(groups, scores, prunella.Budget(**{cost: 2}), damage)
    least = prunella.Budget(**{cost: caught.value.reachable})
    plan = prunella.allocate(groups, scores, least, damage)
    assert getattr(plan.after, cost) == caught.value.reachable


def test_bytes_follow_the_type_and_count_buffers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)).half()
    expected = 2 * (3 * 8 + 8 + 2 * 8 + 8 * 4 + 4) + 2 * 2 * 8 + 8  # statistics, and a counter
    assert count_weight_bytes(model) == expected
    model = model.float()
    image = torch.randn(2, 3, 6, 6)
    groups = prunella.couple(prunella.trace(model, image))
    plan = prunella.allocate(groups, prunella.score(model, groups), 0.5)
    assert plan.before.weight_bytes == count_weight_bytes(model)
    assert plan.after.weight_bytes == count_weight_bytes(prunella.transform(model, plan, image))


class Views(nn.Module):
    """Of four tensors, one is a view and one is written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 10)
        self.b = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)  # 4 in, 10 out
        x = x.relu_()
        x = x.view(-1, 10)
        return self.b(x)  # 10 in, 3 out


def test_views_share_memory_and_what_is_no_longer_read_is_gone() -> None:
    assert count_activation_bytes(Views(), torch.randn(5, 4)) == 4 * (4 + 10)


def test_old_plans_are_read_without_what_they_do_not_know() -> None:
    plan = Plan("digest", {}, {}, {}, {}, Costs(2, 3, 4, 5), Costs(1, 2))
    assert Plan.from_json(plan.to_json()) == plan
    old = plan.to_json().replace(',"weight_bytes":4', "").replace('"activation_bytes":5,', "")
    assert Plan.from_json(old).before == Costs(2, 3)


# Multiples


@pytest.mark.parametrize("damaging", [False, True])
@pytest.mark.parametrize(
    ("name", "multiple"), [*((name, 2) for name in CASES), ("chain", 4), ("grouped_conv", 4)]
)
def test_what_is_cut_keeps_a_multiple(name: str, multiple: int, damaging: bool) -> None:
    model, inputs, groups, scores = traced(name)
    damage = drawn(groups, 5) if damaging else None
    budget = prunella.Budget(macs=0.75)
    plan = prunella.allocate(groups, scores, budget, damage, multiple_of=multiple)
    assert plan.after.macs <= 0.75 * plan.before.macs
    assert all(
        len(kept) == groups.axes[axis].size or len(kept) % multiple == 0
        for axis, kept in kept_of_convolutions(groups, plan)
    )
    prunella.transform(model, plan, inputs)


def kept_of_convolutions(groups: prunella.Groups, plan: Plan) -> list[tuple[Any, Any]]:
    """List what is kept of the axes of weights, but for those inside conv groups."""
    return [
        (axis, plan.kept[axis.tensor][axis.dim])
        for axis, number in groups.axes.items()
        if axis.dim in plan.kept.get(axis.tensor, {})
        and number.ndim == 1
        and any(v.source == axis.tensor and len(v.shape) > 1 for v in groups.graph.values.values())
    ]


def test_multiples_are_part_of_the_choice_and_not_rounded_after() -> None:
    _, _, groups, scores = traced("residual")
    damage = drawn(groups, 2)
    budget = prunella.Budget(macs=0.6)
    found = allocate_and_bound(groups, scores, budget, damage, multiple_of=2)
    names = [group.name for group in groups]
    best = np.inf
    for counts in itertools.product(*(range(2, group.channels + 1, 2) for group in groups)):
        mask = np.ones(groups.channels, dtype=bool)
        for group, n in zip(groups, counts, strict=True):
            mask[group.start + n : group.start + group.channels] = False
        if evaluate(mac_terms(groups), mask) // 2 <= 0.6 * found.plan.before.macs:
            best = min(best, sum(map(damage, names, counts)))
    assert found.damage == pytest.approx(best, rel=1e-4, abs=1e-4)


def test_multiples_by_group_and_with_a_ratio() -> None:
    _, _, groups, scores = traced("residual")
    names = [group.name for group in groups]
    plan = prunella.allocate(groups, scores, 0.4, multiple_of={names[0]: 4})
    assert len(plan.channels[names[0]]) == 4
    with pytest.raises(ConfigError, match="no group called"):
        prunella.allocate(groups, scores, 0.4, multiple_of={"nothing": 4})
    with pytest.raises(ConfigError, match="whole number of channels"):
        prunella.allocate(groups, scores, 0.4, multiple_of=0)


def test_how_good_a_choice_is_is_logged_of_the_one_that_is_asked_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, _, groups, scores = traced("residual")
    caplog.set_level(logging.INFO, "prunella")
    budget = prunella.Budget(macs=0.5)
    found = allocate_and_bound(groups, scores, budget, lambda name, kept: 1 / (1 + kept))
    assert "predicted damage" in found.remarks[0]
    assert not caplog.records
    prunella.allocate(groups, scores, budget, lambda name, kept: 1 / (1 + kept))
    said = [record.message for record in caplog.records]
    assert said == [*found.remarks, *found.warnings]


def test_groups_without_a_multiple_stay_and_are_named(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 32, 1), nn.Conv2d(32, 4, 1))
    groups = prunella.couple(prunella.trace(model, torch.randn(1, 3, 4, 4)))
    scores = prunella.score(model, groups)
    with caplog.at_level(logging.WARNING, "prunella"):
        plan = prunella.allocate(groups, scores, prunella.Budget(macs=0.6), multiple_of=8)
    assert {name: len(kept) for name, kept in plan.channels.items()} == {"0": 6, "2": 16}
    assert "0 (6 channels)" in caplog.text


class Heads(nn.Module):
    """Four heads of six: any number of them is a multiple of six, two of four."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 72)
        self.outer = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inner(x).unflatten(-1, (3, -1, 6)).permute(2, 0, 3, 1, 4)
        x = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.outer(x.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("multiple", "left"), [(6, 1), (4, 2), (16, 4)])
def test_heads_count_as_the_axis_is_long(multiple: int, left: int) -> None:
    model = Heads()
    groups = prunella.couple(prunella.trace(model, torch.randn(2, 7, 5)))
    (group,) = groups
    assert group.channels == 4
    scores = prunella.score(model, groups)
    if left == 4:
        with pytest.raises(NothingToPruneError):
            prunella.allocate(groups, scores, 0.7, multiple_of=multiple)
    else:
        plan = prunella.allocate(groups, scores, 0.7, multiple_of=multiple)
        assert len(plan.channels[group.name]) == left


# Largest ratios


def flat(name: str, kept: int) -> float:
    """Everything is free, so that nothing but the largest ratio holds a group."""
    return 0.0


def test_a_largest_ratio_holds_until_the_budget_cannot_be_met() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 1))
    groups = prunella.couple(prunella.trace(model, torch.randn(1, 3, 4, 4)))
    scores = prunella.score(model, groups)

    def damage(name: str, kept: int) -> float:
        return 0.0 if name == "0" else float(16 - kept)

    def kept(share: float, **options: Any) -> dict[str, int]:
        plan = prunella.allocate(groups, scores, prunella.Budget(macs=share), damage, **options)
        return {name: len(found) for name, found in plan.channels.items()}

    assert kept(0.5)["0"] < 8
    assert kept(0.5, max_ratio=0.5)["0"] == 8
    assert kept(0.5, max_ratio={"0": 0.25})["0"] == 12
    assert min(kept(0.1, max_ratio=0.5).values()) < 8
    even = prunella.allocate(groups, scores, prunella.Budget(macs=0.5), max_ratio={"2": 0.0})
    assert len(even.channels["2"]) == 16
    with pytest.raises(ConfigError, match="max_ratio is a share"):
        kept(0.5, max_ratio=1.5)


def test_further_attempts_do_not_raise_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """They leave out what is at the very limit, and that may be the best."""
    _, _, groups, scores = traced("residual")
    solve_exactly, found = exact.solve_exactly, []

    def again(problem: Problem, alive: exact.Alive, seconds: float) -> exact.Found:
        best = solve_exactly(problem, alive, seconds)
        with monkeypatch.context() as patched:
            refused = iter([False, False])  # as if rounding had let them exceed the budget
            patched.setattr(Problem, "fits", lambda self, state: next(refused, True))
            found.append((best, solve_exactly(problem, alive, seconds)))
        return best

    monkeypatch.setattr(exact, "solve_exactly", again)
    for seed in range(6):
        damage = drawn(groups, seed, bumpy=True)
        best = allocate_and_bound(groups, scores, prunella.Budget(macs=0.5), damage).plan.after
        allocate_and_bound(groups, scores, prunella.Budget(macs=best.macs), damage)
    assert len(found) > 6
    assert any(best.state != last.state for best, last in found), "one left out the best"
    assert all(last.bound <= best.bound + 1e-9 for best, last in found)


def test_what_could_not_be_had_is_told(caplog: pytest.LogCaptureFixture) -> None:
    _, _, groups, scores = traced("residual")
    budget = prunella.Budget(macs=0.1)
    found = allocate_and_bound(groups, scores, budget, max_ratio=0.5)
    warning = found.warnings[0]
    assert warning.startswith("the budget cannot be kept within max_ratio: ")
    least = min(found.plan.channels.items(), key=lambda item: len(item[1]))
    assert f"{least[0]} keeps {len(least[1])} of {found.plan.sizes[least[0]]} channels (" in warning
    assert "max_ratio" not in str(allocate_and_bound(groups, scores, budget).warnings)
    coarse = allocate_and_bound(groups, scores, prunella.Budget(macs=0.6), multiple_of=4)
    assert coarse.warnings == (
        f"of at most {int(0.6 * coarse.plan.before.macs):,} macs the best choice leaves "
        f"{coarse.plan.after.macs:,} macs",
    )
    caplog.clear()
    prunella.allocate(groups, scores, budget, max_ratio=0.5)
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == list(
        found.warnings
    )


def test_with_no_damage_at_all_the_budget_is_used_up() -> None:
    _, _, groups, scores = traced("residual")
    plan = prunella.allocate(groups, scores, prunella.Budget(macs=0.5), flat)
    assert 0.97 * 0.5 * plan.before.macs < plan.after.macs <= 0.5 * plan.before.macs
