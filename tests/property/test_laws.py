"""The laws of pruning, on random networks."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

import prunella
from prunella.errors import NothingToPruneError
from tests import oracle
from tests.coupling import compare_with_experiment
from tests.property.laws import budgets, costs, made, partition, targets, written_down
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
        written_down(groups, plan)
    if seed % 2 == 0:
        budgets(groups, scores)
    assert oracle.unchanged(model, before), "the model was touched"
    return len(plans)


def pruned_equals_masked(model: torch.nn.Module, plan: prunella.Plan, inputs: torch.Tensor) -> None:
    pruned = prunella.transform(model, plan, inputs)
    oracle.check_pruned(comparable(model, plan), plan, comparable(pruned, plan), (inputs,), {})
    assert type(pruned) is type(model)
    costs(model, plan, pruned, inputs)
    difference = oracle.difference(
        oracle.outputs(prunella.mask(model, plan), (inputs,), {}),
        oracle.outputs(oracle.masked(model, plan), (inputs,), {}),
    )
    assert difference <= 1e-9, "the library's masked model is not the one the plan describes"


def comparable(model: torch.nn.Module, plan: prunella.Plan) -> torch.nn.Module:
    """Leave out an output that is summed over channels: what is zeroed is in the sum all the same.

    `transform` has compared it with a sum over the kept channels.
    """
    if not plan.marked:
        return model
    assert model.head == "tuple", "no other head takes statistics over channels"
    model = copy.deepcopy(model)
    model.head = "dict"
    return model


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
