"""The laws of pruning, on random networks."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

import prunella
from prunella.errors import BudgetError, NothingToPruneError
from prunella.planning import make_plan, mask_of
from tests import oracle
from tests.coupling import compare_with_experiment
from tests.property.networks import Description, build, describe, descriptions, images

NETWORKS = 208
CHUNKS = 8


def check(description: Description) -> int:
    """Hold one network against all laws; return how many plans were made."""
    seed = description[2]
    model = build(description)
    before = oracle.state(model)
    inputs = images(seed + 1)
    groups = prunella.couple(prunella.trace(model, inputs))
    partition(model, groups)
    if not len(groups):
        with pytest.raises(NothingToPruneError, match="every group is frozen"):
            prunella.prune(model, inputs, ratio=0.5)
        return 0
    scores = prunella.score(model, groups, "random" if seed % 3 else "magnitude")
    with pytest.raises(NothingToPruneError, match="removes nothing"):
        prunella.allocate(groups, scores, 0.0)
    plans = [plan for target in targets(groups, seed) if (plan := made(groups, scores, target))]
    for plan in plans:
        pruned_equals_masked(model, plan, inputs)
        assert prunella.Plan.from_json(plan.to_json()) == plan
        assert make_plan(groups, mask_of(groups, plan.channels)).kept == plan.kept
    if seed % 2 == 0:
        budgets(groups, scores)
    assert oracle.unchanged(model, before), "the model was touched"
    return len(plans)


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


def pruned_equals_masked(model: torch.nn.Module, plan: prunella.Plan, inputs: torch.Tensor) -> None:
    pruned = prunella.transform(model, plan, inputs)
    oracle.check_pruned(model, plan, pruned, (inputs,), {})
    assert type(pruned) is type(model)
    assert plan.before.macs == prunella.count_macs(model, inputs)
    assert plan.before.params == prunella.count_params(model)
    assert plan.after.macs == prunella.count_macs(pruned, inputs)
    assert plan.after.params == prunella.count_params(pruned)
    assert plan.after.params < plan.before.params
    difference = oracle.difference(
        oracle.outputs(prunella.mask(model, plan), (inputs,), {}),
        oracle.outputs(oracle.masked(model, plan), (inputs,), {}),
    )
    assert difference <= 1e-9, "the library's masked model is not the one the plan describes"


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


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_all_laws_hold_on_evenly_spread_networks(chunk: int) -> None:
    seeds = range(chunk, NETWORKS, CHUNKS)
    plans = 0
    for seed in seeds:
        description = describe(seed)
        try:
            plans += check(description)
        except BaseException as error:
            error.add_note(f"network {seed}: {description}")
            raise
    assert plans > 1.5 * len(seeds), "too many networks had nothing to prune"


@settings(
    max_examples=20,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(descriptions())
def test_all_laws_hold_on_networks_hypothesis_shrinks(description: Description) -> None:
    check(description)


def test_units_are_those_an_experiment_finds() -> None:
    """A NaN in one channel shows what it is coupled with; `Free` calls functions no hook sees."""
    checked = 0
    for seed in range(1000, 1060):
        blocks, head, _ = description = describe(seed, most=3)
        if head != "tuple" and not any(name == "Free" for name, _ in blocks):
            model, inputs = build(description), images(seed)
            groups = prunella.couple(prunella.trace(model, inputs))
            try:
                checked += compare_with_experiment(model, groups, (inputs,), {})
            except BaseException as error:
                error.add_note(f"network {seed}: {description}")
                raise
    assert checked > 500


@settings(max_examples=15, derandomize=True, database=None, deadline=None)
@given(descriptions(2))
def test_permuting_the_channels_of_a_group_permutes_its_scores(description: Description) -> None:
    model = build(description)
    groups = prunella.couple(prunella.trace(model, images(0)))
    scores = prunella.score(model, groups, "magnitude")
    found = oracle.tensors(model)
    draw = np.random.default_rng(description[2])
    for group in groups:
        if any(groups.axes[axis].ndim == 2 for axis in group.axes):
            continue  # a grouped convolution's channels cannot change places freely
        order = draw.permutation(group.channels)
        with torch.no_grad():
            for axis, positions in group.axes.items():
                tensor = found[axis.tensor]
                source = torch.from_numpy(positions[order].reshape(-1))
                moved = tensor.index_select(axis.dim, source)
                tensor.index_copy_(axis.dim, torch.from_numpy(positions.reshape(-1)), moved)
        again = prunella.score(model, groups, "magnitude")
        np.testing.assert_allclose(
            again.values[group.name], scores.values[group.name][order], rtol=1e-5
        )
        scores = again
