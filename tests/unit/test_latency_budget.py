"""Budgets on time: the best choice there is, free widths, several budgets, what cannot be had."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import prunella
from prunella.allocating import Damage, allocate_and_bound
from prunella.allocating.choosing import Chooser
from prunella.allocating.levels import ladder
from prunella.allocating.multiples import multiples
from prunella.costs.ladders import LadderCosts
from prunella.costs.predicted import evaluate
from prunella.costs.timed import UNITS, LatencyModel, Part, Region, digest_of
from prunella.costs.widths import PLAIN, Step, widths
from prunella.errors import BudgetError, ConfigError, PlanMismatchError
from prunella.plan import Costs, milliseconds
from tests.models import ZOO

CASES = ["chain", "residual", "concat", "depthwise", "grouped_conv", "shuffle"]
GROWING = (PLAIN, Step(block=4), Step(block=8))
UNEVEN = (*GROWING, Step(of=4, only="ragged"), Step(block=8, of=4, only="whole"))


def traced(name: str) -> tuple[prunella.Groups, prunella.Scores]:
    model, inputs = ZOO[name].model(), ZOO[name].inputs()
    groups = prunella.couple(prunella.trace(model, inputs))
    return groups, prunella.score(model, groups)


def drawn_model(
    groups: prunella.Groups, seed: int, steps: tuple[Step, ...] = GROWING
) -> LatencyModel:
    """Draw a network's time: every product reads one or two widths, with steps of any kind."""
    draw = np.random.default_rng(seed)
    found = widths(groups)
    regions = [Region("fixed", "", (Part(0.01, (), ()),))]
    for term in groups.terms:
        mine = [
            w
            for w, width in enumerate(found)
            if any(np.array_equal(width.channels, np.unique(dim)) for dim in term.dims)
        ]
        parts = []
        for size in (1, 2):
            for chosen in itertools.combinations(mine, size):
                step = tuple(
                    steps[draw.integers(len(steps))] if found[w].alone else PLAIN for w in chosen
                )
                parts.append(Part(float(draw.uniform(0.1, 1) / 10**size), chosen, step))
        regions.append(Region(term.node, "conv", tuple(parts)))
    return LatencyModel("torch", digest_of(groups), tuple(regions), 1.0, 16, 0.0, 0.0)


def drawn_damage(groups: prunella.Groups, seed: int) -> Damage:
    draw = np.random.default_rng(seed)
    curves = {
        g.name: np.concatenate([[0.0], np.cumsum(draw.exponential(size=g.channels) + 0.01)])
        for g in groups
    }
    return lambda name, kept: float(curves[name][len(curves[name]) - 1 - kept])


def brute_force(
    groups: prunella.Groups,
    scores: prunella.Scores,
    model: LatencyModel,
    limit: float,
    damage: Damage,
) -> float:
    """Return the least damage over every combination of all widths that keeps the limit."""
    chooser = Chooser(groups, scores)
    free = multiples(groups, chooser.clusters, 1)
    ladders = [
        ladder(chooser, cluster, asked).counts
        for cluster, asked in zip(chooser.clusters, free, strict=True)
    ]
    terms, best = model.terms(groups), np.inf
    for counts in itertools.product(*ladders):
        lost = 0.0
        for cluster, found in zip(chooser.clusters, counts, strict=True):
            for name in cluster.groups:
                of_group = (atom.group == name for atom in cluster.atoms)
                kept = sum(int(n) for mine, n in zip(of_group, found, strict=True) if mine)
                lost += damage(name, kept)
        if lost < best and evaluate(terms, chooser.mask(counts)) <= limit * UNITS:
            best = lost
    return best


@pytest.mark.parametrize("name", CASES)
def test_no_widths_within_the_time_do_less_damage(name: str) -> None:
    groups, scores = traced(name)
    compared = 0
    for seed, share in enumerate((0.8, 0.6, 0.4)):
        model, damage = drawn_model(groups, seed), drawn_damage(groups, seed)
        try:
            found = allocate_and_bound(
                groups, scores, prunella.Budget(latency=share), damage, latency_model=model
            )
        except BudgetError:
            continue
        before, after = found.plan.before.latency, found.plan.after.latency
        assert before is not None
        assert after is not None
        assert after <= share * before
        best = brute_force(groups, scores, model, share * before, damage)
        assert found.damage == pytest.approx(best, rel=1e-4, abs=1e-4)
        assert found.gap == pytest.approx(0, abs=1e-6)
        compared += 1
    assert compared


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("damaging", [False, True])
def test_less_time_is_kept_too_and_does_no_less_damage(name: str, damaging: bool) -> None:
    groups, scores = traced(name)
    model = drawn_model(groups, 5)
    damage = drawn_damage(groups, 5)
    lost, left = [], []
    for share in (0.95, 0.85, 0.75):
        plan = allocate_and_bound(
            groups,
            scores,
            prunella.Budget(latency=share),
            damage if damaging else None,
            latency_model=model,
        ).plan
        assert plan.after.latency is not None
        assert plan.before.latency is not None
        assert plan.after.latency <= share * plan.before.latency
        lost.append(sum(damage(g, len(kept)) for g, kept in plan.channels.items()))
        left.append(plan.after.latency)
    if damaging:
        assert lost == sorted(lost)
    assert left == sorted(left, reverse=True)


@pytest.mark.parametrize("name", CASES)
def test_time_by_levels_is_time_by_mask(name: str) -> None:
    groups, scores = traced(name)
    model = drawn_model(groups, 2, UNEVEN)
    chooser = Chooser(groups, scores)
    free = multiples(groups, chooser.clusters, 1)
    ladders = [
        ladder(chooser, cluster, asked)
        for cluster, asked in zip(chooser.clusters, free, strict=True)
    ]
    terms = model.terms(groups)
    costs = LadderCosts(terms, np.ones((1, len(terms)), dtype=np.int64), ladders, groups.channels)
    draw = np.random.default_rng(0)
    fixed, parts = costs.parts()
    for _ in range(20):
        at = [int(draw.integers(len(found))) for found in ladders]
        costs.put(at)
        expected = evaluate(
            terms, chooser.mask([found.counts[i] for found, i in zip(ladders, at, strict=True)])
        )
        assert costs.totals()[0] == expected
        assert costs.along(0)[0, at[0]] == expected
        multiplied = costs.factors[0] @ fixed
        for scope, made in parts.items():
            for term, table in made:
                multiplied += costs.factors[0, term] * table[tuple(at[c] for c in scope)]
        assert multiplied == expected


def stepped(groups: prunella.Groups, steps: dict[str, Step]) -> LatencyModel:
    """Let each group's width count by a step of its own, and nothing else."""
    found = widths(groups)
    parts = []
    for group in groups:
        (w,) = [
            i
            for i, width in enumerate(found)
            if np.array_equal(width.channels, np.arange(group.start, group.start + group.channels))
        ]
        parts.append(Part(0.01, (w,), (steps.get(group.name, PLAIN),)))
    region = Region("all", "", tuple(parts))
    return LatencyModel("torch", digest_of(groups), (region,), 1.0, 16, 0.0, 0.0)


@pytest.mark.parametrize("damaging", [False, True])
def test_widths_that_are_free_are_kept(damaging: bool) -> None:
    groups, scores = traced("chain")
    steps = {group.name: Step(block=4) for group in groups}
    model = stepped(groups, steps)
    damage = drawn_damage(groups, 1) if damaging else None
    plan = prunella.allocate(
        groups, scores, prunella.Budget(latency=0.6), damage, latency_model=model
    )
    for group in groups:
        kept = len(plan.channels[group.name])
        assert kept % 4 == 0 or kept == group.channels
    assert any(len(kept) < groups[name].channels for name, kept in plan.channels.items())


@pytest.mark.parametrize("damaging", [False, True])
def test_widths_that_are_slower_than_wider_ones_are_never_taken(damaging: bool) -> None:
    groups, scores = traced("chain")
    model = stepped(groups, {})
    slow = Step(of=4, only="ragged")
    region = model.regions[0]
    parts = (*region.parts, *(Part(0.2, part.widths, (slow,)) for part in region.parts))
    cliffs = LatencyModel(
        "torch", digest_of(groups), (Region("all", "", parts),), 1.0, 16, 0.0, 0.0
    )
    damage = drawn_damage(groups, 1) if damaging else None
    for share in (0.8, 0.5):
        plan = prunella.allocate(
            groups, scores, prunella.Budget(latency=share), damage, latency_model=cliffs
        )
        assert all(len(kept) % 4 == 0 for kept in plan.channels.values())


def test_several_budgets_hold_together() -> None:
    groups, scores = traced("residual")
    model, damage = drawn_model(groups, 1), drawn_damage(groups, 1)
    budget = prunella.Budget(latency=0.7, params=0.6, macs="50%")
    plan = prunella.allocate(groups, scores, budget, damage, latency_model=model)
    limits = budget.resolve(plan.before)
    assert limits.keys() == {"latency", "params", "macs"}
    for name, limit in limits.items():
        assert getattr(plan.after, name) <= limit


def test_what_cannot_be_had_says_what_can() -> None:
    groups, scores = traced("chain")
    model = drawn_model(groups, 0)
    with pytest.raises(
        BudgetError, match=r"0\.001 ms of latency of the dense model's [\d.]+ ms: "
    ) as error:
        prunella.allocate(groups, scores, prunella.Budget(latency="1 us"), latency_model=model)
    near = error.value.reachable
    assert near > 0.001
    plan = prunella.allocate(
        groups, scores, prunella.Budget(latency=f"{near * 1.0001}ms"), latency_model=model
    )
    assert plan.after.latency == pytest.approx(near, rel=1e-3)


def test_time_needs_a_model_of_this_network() -> None:
    groups, scores = traced("chain")
    with pytest.raises(ConfigError, match="needs a latency model"):
        prunella.allocate(groups, scores, prunella.Budget(latency=0.5))
    others, _ = traced("residual")
    with pytest.raises(PlanMismatchError, match="another network"):
        prunella.allocate(
            groups, scores, prunella.Budget(latency=0.5), latency_model=drawn_model(others, 0)
        )


def test_networks_that_run_otherwise_are_others() -> None:
    def digest(activation: nn.Module, size: int = 8) -> str:
        model = nn.Sequential(nn.Conv2d(3, 8, 3), activation, nn.Conv2d(8, 4, 3))
        return digest_of(prunella.couple(prunella.trace(model, torch.randn(1, 3, size, size))))

    same = digest(nn.ReLU())
    assert digest(nn.ReLU()) == same
    assert digest(nn.SiLU()) != same
    assert digest(nn.ReLU(), 9) != same


@pytest.mark.parametrize(
    ("bound", "found"),
    [(0.5, 10.0), ("50%", 10.0), ("0.5", 10.0), ("8ms", 8.0), ("0.2 s", 200.0), ("500us", 0.5)],
)
def test_a_time_is_a_share_or_has_a_unit(bound: float | str, found: float) -> None:
    assert milliseconds(bound, 20.0) == pytest.approx(found)
    assert prunella.Budget(latency=bound).resolve(Costs(1, 1, latency=20.0)) == {
        "latency": pytest.approx(found)
    }


@pytest.mark.parametrize("bound", [8, 0, -0.5, 1.5, "8", "200%", "0ms", "-3ms", "fast", "ms", True])
def test_other_times_are_named(bound: float | str) -> None:
    with pytest.raises(ConfigError, match="time with its unit"):
        prunella.Budget(latency=bound)
