"""Coupling on the zoo: what must be cut together, found by experiment, and what must stay."""

import pytest
import torch
from torch import nn

import prunella
from prunella.errors import NothingToPruneError
from tests import oracle
from tests.coupling import compare_with_experiment
from tests.models import ZOO, Case

# Nothing of this can be cut: its own code insists on a number of channels.
WHOLE = {"size_in_code"}
NAMES = sorted(set(ZOO) - WHOLE)

# Statistics over channels are taken over the kept ones: the oracle, which zeroes channels, knows
# nothing of that, so what the certificate found is all there is.
MARKED = {"softmax_over_channels", "spatial_gate"}

# Tensors with a frozen axis, beyond what feeds from the inputs or ends in the outputs.
FROZEN = {
    "dict_output": {"tap.0.weight"},
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
    assert result.plan.marked == (name in MARKED)
    if not result.plan.marked:
        oracle.check_pruned(model, result.plan, result.model, *other)
    assert result.plan.after.params == prunella.count_params(result.model)
    assert result.plan.after.macs == prunella.count_macs(result.model, inputs, keywords)
    assert result.plan.before.macs == prunella.count_macs(model, inputs, keywords)
    assert result.plan.after.params < result.plan.before.params
    assert (result.form == "class") == (type(result.model) is type(model))
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
        if not plan.marked:
            oracle.check_pruned(model, plan, pruned, inputs, keywords)
        cut += 1
    assert cut, groups.why_frozen()


# Dropout draws one number for each element there is.
@pytest.mark.parametrize("name", sorted(set(NAMES) - {"flatten"} - MARKED))
def test_pruned_trains_like_masked(name: str) -> None:
    """In training mode too, and in the gradients: finetuning either is the same."""
    case = ZOO[name]
    model = case.model()
    result = prunella.prune(model, case.inputs(), ratio=0.5, example_kwargs=case.keywords())
    masked, pruned = oracle.masked(model, result.plan).train(), result.model.train()
    outputs = []
    for trained in (masked, pruned):
        out = list(oracle.leaves(trained(*case.inputs(seed=4), **case.keywords(seed=4))))
        if any(p.requires_grad for p in trained.parameters()):
            sum((tensor**2).sum() for tensor in out).backward()
        outputs.append([tensor.detach() for tensor in out])
    assert oracle.difference(outputs[1], outputs[0]) <= 1e-9
    small = dict(pruned.named_parameters())
    for tensor_name, parameter in masked.named_parameters():
        if parameter.grad is not None:
            kept = result.plan.kept.get(tensor_name)
            wanted = oracle.sliced(parameter.grad, kept) if kept else parameter.grad
            torch.testing.assert_close(small[tensor_name].grad, wanted, rtol=1e-7, atol=1e-9)


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
    with pytest.raises(NothingToPruneError, match=r"fewer channels at .*raise ValueError"):
        prunella.prune(model, case.inputs(), ratio=0.5)
    assert oracle.unchanged(model, before)


def test_one_side_of_an_outer_product_is_cut() -> None:
    case = ZOO["bilinear"]
    plan = prunella.prune(case.model(), case.inputs(), ratio=0.5).plan
    assert len(plan.kept["a.0.weight"][0]) == 3
    assert "b.0.weight" not in plan.kept or 0 not in plan.kept["b.0.weight"]


# The experiment hooks modules, so what happens in functional calls is out of its sight.
SEEN = sorted(
    set(NAMES)
    - {"bare_parameter", "tied_weights", "transposed", "signal", "volume", "bilinear"}
    - MARKED
)


@pytest.mark.parametrize("name", SEEN)
def test_units_are_those_an_experiment_finds(name: str) -> None:
    case = ZOO[name]
    model = case.model()
    compare_with_experiment(model, groups_of(case, model), case.inputs(), case.keywords())


class _Positions(nn.Module):
    """A table of positions, of which an input reads as many as it is long."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(5, 16), nn.Linear(16, 24), nn.Linear(24, 3)
        self.positions = nn.Parameter(torch.randn(1, 32, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x) + self.positions[:, : x.shape[1]].to(x.dtype)
        return self.head(self.inner(x).relu())


def test_rows_of_a_table_that_the_example_does_not_read_stay_for_longer_inputs() -> None:
    model = _Positions().double().eval()
    result = prunella.prune(model, torch.randn(2, 6, 5).double(), ratio=0.5)
    assert 1 not in result.plan.kept["positions"]
    assert len(result.plan.kept["positions"][2]) == 8
    longer = torch.randn(2, 30, 5).double()
    masked = oracle.masked(model, result.plan)(longer)
    assert oracle.difference([result.model(longer)], [masked]) <= 1e-9
    reasons = [str(why) for group in result.summary.groups.frozen for why in group.frozen]
    assert any("nothing reads it with these inputs" in why for why in reasons)
