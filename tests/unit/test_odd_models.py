"""Models in odd states: on the meta device, frozen, in training mode, made in inference mode."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.ao import quantization

import prunella
from prunella.errors import ConfigError, NothingToPruneError, TraceError

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(16)
    norm.running_mean.uniform_(-0.5, 0.5)
    return nn.Sequential(nn.Linear(6, 16), norm, nn.ReLU(), nn.Linear(16, 12), nn.Linear(12, 2))


def groups_and_scores(model: nn.Module) -> tuple[prunella.Groups, prunella.Scores]:
    x = X.to(next(model.parameters()).device)
    groups = prunella.couple(prunella.trace(model, x))
    return groups, prunella.Scores("mine", {g.name: np.arange(float(g.channels)) for g in groups})


def planned(model: nn.Module) -> prunella.Plan:
    return prunella.allocate(*groups_and_scores(model), prunella.Budget(macs=0.5))


def judged(model: nn.Module) -> float:
    with torch.no_grad():
        return float(model(X).square().mean())


def analyzed(model: nn.Module) -> Any:
    found = groups_and_scores(model)
    return prunella.analyze(model, *found, judged, metric="size", higher_is_better=True)


def data(model: nn.Module) -> prunella.Calibration:
    return prunella.Calibration([((X.to(next(model.parameters()).device),), {})])


CALLS: dict[str, Callable[[nn.Module], Any]] = {
    "score": lambda m: prunella.score(m, groups_and_scores(m)[0]),
    "analyze": analyzed,
    "estimate": lambda m: prunella.estimate(m, *groups_and_scores(m), data(m)),
    "reconstruct": lambda m: prunella.reconstruct(m, *groups_and_scores(m), data(m)),
    "mask": lambda m: prunella.mask(m, planned(m)),
    "transform": lambda m: prunella.transform(m, planned(m)),
    "compensate": lambda m: prunella.compensate(m, planned(m), data(m)),
    "prune": lambda m: prunella.prune(m, X.to("meta"), macs=0.5),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_needs_numbers_says_so_on_the_meta_device(name: str) -> None:
    with pytest.raises(ConfigError, match=r"`0.weight` is on the meta device, .*load the weights"):
        CALLS[name](net().to("meta"))


def test_what_needs_none_works_on_the_meta_device(tmp_path: Path) -> None:
    model = net().to("meta")
    plan = planned(model)
    assert plan == planned(net())
    pruned = prunella.transform(model, plan, certify=False)
    assert pruned[0].weight.is_meta
    with pytest.raises(ConfigError, match=r"and saving needs its numbers"):
        prunella.save(pruned, tmp_path)


@pytest.mark.parametrize("name", ["analyze", "estimate"])
def test_what_changes_weights_says_so_of_those_made_in_inference_mode(name: str) -> None:
    with torch.inference_mode():
        model = net()
    with pytest.raises(ConfigError, match=r"`0.weight` was made under .*outside of it"):
        CALLS[name](model)


def test_a_model_made_in_inference_mode_is_captured_like_any_other() -> None:
    plain = net()
    with torch.inference_mode():
        model, x = copy.deepcopy(plain), X.clone()
    wanted = prunella.trace(plain, X)
    for found in (prunella.trace(model, X), prunella.trace(plain, x)):
        assert not found.recorded
        assert [node.op for node in found.nodes] == [node.op for node in wanted.nodes]
    pruned = prunella.prune(model, X, macs=0.5).model
    assert torch.equal(pruned(X), prunella.prune(plain, X, macs=0.5).model(X))
    with pytest.raises(ConfigError, match=r"`0.weight` was made under .*outside of it"):
        prunella.prune(model, X, macs=0.5, calibration=[X])


@torch.inference_mode()
@pytest.mark.parametrize("name", ["analyze", "estimate"])
def test_all_of_it_may_be_in_inference_mode(name: str) -> None:
    CALLS[name](net())


@pytest.mark.parametrize("state", ["training", "frozen"])
@pytest.mark.parametrize("calibration", [None, [X]])
def test_mode_and_frozen_parameters_change_nothing(state: str, calibration: Any) -> None:
    wanted = prunella.prune(net().eval(), X, macs=0.5, calibration=calibration)
    model = net().train() if state == "training" else net().eval().requires_grad_(False)
    found = prunella.prune(model, X, macs=0.5, calibration=calibration)
    assert found.plan == wanted.plan
    assert found.model.training == (state == "training")
    assert all(p.requires_grad == (state == "training") for p in found.model.parameters())
    for one, other in zip(found.model.parameters(), wanted.model.parameters(), strict=True):
        assert torch.equal(one, other)


class Features(nn.Module):
    """Its head reads what a hook noted, which is a function that encloses the model."""

    def __init__(self, by: str) -> None:
        super().__init__()
        self.body = net()
        self.head = nn.Linear(12, 3)
        self.noted: dict[str, torch.Tensor] = {}

        def note(module: nn.Module, args: Any, out: torch.Tensor) -> None:
            self.noted["made"] = out

        if by == "default":
            self.body[3].register_forward_hook(
                lambda m, args, out, to=self.noted: to.update(made=out)
            )
        else:
            self.body[3].register_forward_hook(note)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) @ torch.ones(2, 3) + self.head(self.noted["made"])


@pytest.mark.parametrize("by", ["closure", "default"])
@pytest.mark.parametrize("group", ["body.0", "body.3"])
def test_hooks_of_a_model_note_in_the_pruned_one_what_that_makes(by: str, group: str) -> None:
    torch.manual_seed(0)
    model = Features(by).eval()
    model(X)
    result = prunella.prune(model, X, ratio={group: 0.5})
    masked = prunella.mask(model, result.plan)
    model(X)
    before = model.noted["made"]
    for x in (X, X.flip(0)):
        with torch.no_grad():
            wanted = masked.head(masked.body[:4](x)) + masked.body(x) @ torch.ones(2, 3)
            assert torch.allclose(result.model(x), wanted, atol=1e-5)
    assert model.noted["made"] is before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
class TestTorchScript:
    def test_a_scripted_module_is_named_with_the_remedy(self) -> None:
        inner = torch.jit.script(nn.Sequential(nn.Linear(16, 12), nn.ReLU()))
        model = nn.Sequential(nn.Linear(6, 16), inner, nn.Linear(12, 2))
        with pytest.raises(TraceError, match=r"`1` is a TorchScript module.* Put the module it"):
            prunella.prune(model, X, ratio=0.5)

    def test_what_a_traced_module_owns_stays(self) -> None:
        inner = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 16))
        inner = torch.jit.trace(inner.requires_grad_(False), torch.randn(8, 16))
        model = nn.Sequential(nn.Linear(6, 16), inner, nn.Linear(16, 20), nn.Linear(20, 2))
        result = prunella.prune(model, X, ratio=0.5)
        assert len(result.plan.channels) == 1
        assert result.model[2].out_features == 10
        (one,) = [g for g in result.summary.groups.frozen if g.channels == 12]
        assert [why.reason for why in one.frozen] == ["belongs to a TorchScript module"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("observer", ["fused", "apart"])
def test_what_is_prepared_for_quantisation_is_told_to_prune_before(observer: str) -> None:
    ranges = quantization.get_default_qat_qconfig("x86", version=1 if observer == "fused" else 0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)).train()
    model.qconfig = ranges
    quantization.prepare_qat(model, inplace=True)
    model(X)
    with pytest.raises(NothingToPruneError, match=r"0 .*prune the model before preparing it"):
        prunella.prune(model.eval(), X, ratio=0.5)
