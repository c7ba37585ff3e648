"""Coupling on the zoo: what must be cut together, found by experiment, and what must stay."""

import pytest
import torch
from torch import nn

import prunella
from prunella.errors import NothingToPruneError, TransformError
from tests import oracle
from tests.models import ZOO, Case

# Nothing of these can be cut: each column of the layer behind an outer product has two owners; a
# size is computed from an attribute of the user's own.
WHOLE = {"bilinear", "size_in_code"}
NAMES = sorted(set(ZOO) - WHOLE)

# Tensors with a frozen axis, beyond what feeds from the inputs or ends in the outputs.
FROZEN = {
    "dict_output": {"tap.0.weight"},
    "softmax_over_channels": {"stem.0.weight"},
}


def groups_of(case: Case, model: nn.Module) -> prunella.Groups:
    return prunella.couple(prunella.trace(model, case.inputs(), case.keywords()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8])
def test_pruned_is_the_slice_the_plan_describes_and_equals_masked(name: str, ratio: float) -> None:
    case = ZOO[name]
    model = case.model()
    before = oracle.state(model)
    inputs, keywords = case.inputs(), case.keywords()
    result = prunella.prune(model, inputs, ratio=ratio, example_kwargs=keywords)
    other = case.inputs(seed=5), case.keywords(seed=5)
    oracle.check_pruned(model, result.plan, result.model, *other)
    assert result.plan.after.params == prunella.count_params(result.model)
    assert result.plan.after.macs == prunella.count_macs(result.model, inputs, keywords)
    assert result.plan.before.macs == prunella.count_macs(model, inputs, keywords)
    assert result.plan.after.params < result.plan.before.params
    assert type(result.model) is type(model)
    assert oracle.unchanged(model, before)


@pytest.mark.parametrize("name", NAMES)
def test_every_group_can_be_cut_alone_or_says_what_binds_it(name: str) -> None:
    case = ZOO[name]
    model = case.model()
    inputs, keywords = case.inputs(), case.keywords()
    groups = groups_of(case, model)
    scores = prunella.score(model, groups)
    cut = 0
    for group in groups:
        try:
            plan = prunella.allocate(groups, scores, {group.name: 0.5})
        except NothingToPruneError:
            assert groups.blocks, f"{group.name} cannot be cut, and nothing binds it"
            continue
        pruned = prunella.transform(model, plan, inputs, keywords)
        oracle.check_pruned(model, plan, pruned, inputs, keywords)
        cut += 1
    assert cut, groups.why_frozen()


@pytest.mark.parametrize("name", NAMES)
def test_inputs_and_outputs_are_protected_without_being_listed(name: str) -> None:
    case = ZOO[name]
    model = case.model()
    dense = oracle.outputs(model, case.inputs(), case.keywords())
    result = prunella.prune(model, case.inputs(), ratio=0.8, example_kwargs=case.keywords())
    pruned = oracle.outputs(result.model, case.inputs(), case.keywords())
    assert [out.shape for out in pruned] == [out.shape for out in dense]


@pytest.mark.parametrize("name", sorted(FROZEN))
def test_channels_that_must_stay_are_frozen_with_operator_and_module(name: str) -> None:
    case = ZOO[name]
    groups = groups_of(case, case.model())
    for tensor in FROZEN[name]:
        axis = prunella.Axis(tensor, 0)
        assert not any(axis in group.axes for group in groups)
        reasons = [r for group in groups.frozen if axis in group.axes for r in group.frozen]
        assert reasons
        assert all(reason.op and reason.reason for reason in reasons)


def test_a_size_in_the_users_code_is_an_error_that_shows_the_line() -> None:
    case = ZOO["size_in_code"]
    model = case.model()
    before = oracle.state(model)
    with pytest.raises(TransformError, match=r"self\.width \* 4.*left untouched"):
        prunella.prune(model, case.inputs(), ratio=0.5)
    assert oracle.unchanged(model, before)


def test_an_outer_product_is_left_whole() -> None:
    case = ZOO["bilinear"]
    with pytest.raises(NothingToPruneError, match="depend on one another"):
        prunella.prune(case.model(), case.inputs(), ratio=0.5)


# The experiment hooks modules, so what happens in functional calls is out of its sight.
SEEN = sorted(set(NAMES) - {"bare_parameter", "tied_weights", "transposed", "signal", "volume"})


@pytest.mark.parametrize("name", SEEN)
def test_units_are_those_an_experiment_finds(name: str) -> None:
    case = ZOO[name]
    model = case.model()
    compare_with_experiment(model, groups_of(case, model), case.inputs(), case.keywords(), name)


def compare_with_experiment(
    model: nn.Module,
    groups: prunella.Groups,
    inputs: tuple[torch.Tensor, ...],
    keywords: dict[str, torch.Tensor],
    name: str = "",
) -> int:
    """Assert that channels a NaN connects are one unit, and that a unit has no more than those."""
    found, stuck = oracle.poisoned_units(model, inputs, keywords)
    owner = library_slots(model, groups)
    checked = 0
    for unit in found:
        known = {owner[slot] for slot in unit if slot in owner}
        free = not any(frozen for _, frozen in known)
        if unit & stuck:
            assert not free or not known, f"{sorted(unit)} reaches an output, and is not frozen"
        elif free and known:
            assert len({channel for channel, _ in known}) == 1, f"{sorted(unit)} are not together"
            checked += 1
    units: dict[int, set[oracle.Slot]] = {}
    for slot, (channel, frozen) in owner.items():
        if not frozen:
            units.setdefault(channel, set()).add(slot)
    by_slot = {slot: i for i, unit in enumerate(found) for slot in unit}
    bound = {c for block in groups.blocks for c in block.rows.reshape(-1).tolist()}
    for channel, slots in units.items():
        together = {by_slot[slot] for slot in slots if slot in by_slot}
        if channel not in bound:
            assert len(together) <= 1, f"{sorted(slots)} are cut together without need"
    return checked


def library_slots(
    model: nn.Module, groups: prunella.Groups
) -> dict[tuple[str, oracle.Slot], tuple[int, bool]]:
    """Say of every slot of the experiment which channel (number) it is, and if it is frozen."""
    modules = dict(model.named_modules())
    owner: dict[tuple[str, oracle.Slot], tuple[int, bool]] = {}
    for group in (*groups, *groups.frozen):
        for axis, positions in group.axes.items():
            name, _, leaf = axis.tensor.rpartition(".")
            module = modules[name]
            if leaf != "weight" or isinstance(module, nn.PReLU):
                continue
            kind = "out" if axis.dim == 0 else "in"
            divide = 1
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                kind = "norm"
            elif isinstance(module, nn.Conv2d) and module.groups > 1:
                if module.groups == module.in_channels:
                    kind, divide = "norm", module.out_channels // module.in_channels
                elif axis.dim == 1:
                    continue  # positions within a conv group
            for channel, row in enumerate(positions):
                for position in row.reshape(-1).tolist():
                    slot = (kind, (name, position // divide))
                    owner[slot] = (group.start + channel, bool(group.frozen))
    return owner
