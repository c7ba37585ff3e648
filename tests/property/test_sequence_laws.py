"""The laws of pruning, on random networks over sequences, with heads and norms."""

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunella
from prunella.errors import NothingToPruneError
from prunella.plan import Heads
from prunella.pruning import choose_form
from prunella.transforming import transform_and_prove
from tests import oracle
from tests.property import sequences
from tests.property.laws import budgets, costs, made, partition, targets, written_down
from tests.property.sequences import Attention, Description, build, describe, ids

NETWORKS = 72
CHUNKS = 4


def check(description: Description) -> set[str]:
    """Hold one network against all laws; return the tensors of which something was cut."""
    seed = description[-1]
    model, tokens = build(description), ids(seed)
    before = oracle.state(model)
    graph = prunella.trace(model, tokens)
    rewrite = seed % 20 == 4  # which takes several captures
    heads: Heads = "inside" if seed % 5 in (1, 3) else "whole"
    groups = choose_form(graph, (), "graph" if rewrite else "auto", heads)
    partition(model, groups)
    if not len(groups):
        with pytest.raises(NothingToPruneError, match="every group is frozen"):
            prunella.prune(model, tokens, ratio=0.5, heads=heads)
        return set()
    scores = prunella.score(model, groups, "random" if seed % 3 else "magnitude")
    cut: set[str] = set()
    for target in targets(groups, seed)[: 1 if rewrite else 2]:
        plan = made(groups, scores, target)
        if plan is None:
            continue
        pruned, _ = transform_and_prove(model, plan, (tokens,), {}, groups)
        scaled = prunella.plan_of(pruned)
        assert scaled is not None
        slices(model, scaled, pruned)
        written_down(groups, scaled)
        error = oracle.difference(
            oracle.outputs(pruned, (tokens,), {}),
            oracle.outputs(reference(model, plan), (tokens,), {}),
        )
        assert error <= 1e-9, f"pruned and masked differ by {error:.1e}"
        assert (type(pruned) is type(model)) == (plan.form == "class")
        if plan.form == "class":
            heads_follow(pruned)
        costs(model, plan, pruned, tokens)
        written_down(groups, plan)
        cut |= set(plan.kept)
    if seed % 4 == 0:
        budgets(groups, scores)
    assert oracle.unchanged(model, before), "the model was touched"
    return cut


def slices(model: nn.Module, plan: prunella.Plan, pruned: nn.Module) -> None:
    """Every tensor is the slice of the original that the plan describes."""
    dense, small = oracle.tensors(model), oracle.tensors(pruned)
    assert small.keys() <= dense.keys()
    assert plan.form == "graph" or small.keys() == dense.keys()
    for name, tensor in small.items():
        wanted = dense[name].detach()
        if name in plan.kept:
            wanted = oracle.sliced(wanted, plan.kept[name])
        for dim, factors in (plan.factors or {}).get(name, {}).items():
            assert 0.5 <= min(factors) <= max(factors) <= 1, "shorter heads would be scaled up"
            wanted = (wanted.movedim(dim, -1) * wanted.new_tensor(factors)).movedim(-1, dim)
        assert torch.equal(tensor.detach(), wanted), f"{name} is not the slice of the original"


def heads_follow(pruned: nn.Module) -> None:
    for module in pruned.modules():
        if isinstance(module, Attention) and hasattr(module, "qkv"):
            rows = module.num_heads * module.head_dim
            assert module.qkv.weight.shape[0] == 3 * rows
            assert module.out.in_features == rows
        if isinstance(module, nn.MultiheadAttention):
            width = module.num_heads * module.head_dim
            assert module.embed_dim == width
            assert module.in_proj_weight.shape == (3 * width, width)
        if isinstance(module, nn.LayerNorm):
            assert module.normalized_shape == tuple(module.weight.shape)


def reference(model: nn.Module, plan: prunella.Plan) -> nn.Module:
    """Zero what is removed; let norms look at what is kept, and give zeros elsewhere."""
    masked = oracle.masked(model, plan)
    for name, module in masked.named_modules():
        kept = plan.kept.get(f"{name}.weight", {}).get(0)
        norm = NORMS.get(type(module))
        if kept is not None and norm is not None:
            module.forward = functools.partial(over_kept, module, norm, list(kept))
    return masked


def over_kept(module: nn.Module, norm: Any, kept: list[int], x: Tensor) -> Tensor:
    dim = 1 if type(module) is nn.GroupNorm else -1
    out = torch.zeros_like(x)
    at = torch.tensor(kept)
    affine = [p[at] for p in (module.weight, getattr(module, "bias", None)) if p is not None]
    return out.index_copy(dim, at, norm(module, x.index_select(dim, at), *affine))


def layer(module: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    spread = (x - x.mean(-1, keepdim=True)) / (x.var(-1, False, keepdim=True) + module.eps).sqrt()
    return spread * weight + bias


def root(module: Any, x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def group(module: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x, module.num_groups, weight, bias, module.eps)


def grouped(module: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return group(module, x.transpose(1, 2), weight, bias).transpose(1, 2)


NORMS = {
    nn.LayerNorm: layer,
    sequences.Root: root,
    nn.GroupNorm: group,
    sequences.Grouped: grouped,
}


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_all_laws_hold_on_networks_over_sequences(chunk: int) -> None:
    some = stream = 0
    seeds = range(chunk, NETWORKS, CHUNKS)
    for seed in seeds:
        description = describe(seed)
        try:
            cut = check(description)
        except BaseException as error:
            error.add_note(f"network {seed}: {description}")
            raise
        some += bool(cut)
        stream += "embed.weight" in cut
    assert some > 0.9 * len(seeds), "too many networks had nothing to prune"
    assert stream > 0.4 * len(seeds), "the stream was hardly ever cut"
