"""Prune with Torch-Pruning, as its README and examples do."""

import copy
from functools import partial
from typing import Any

import torch_pruning as tp
from torch import nn

import prunella
from benchmarks.real_models.ours import BUDGET
from benchmarks.real_models.subject import Subject

HALVINGS = 12

SCOPES: dict[str, dict[str, Any]] = {
    "local": {"global_pruning": False},
    "global": {"global_pruning": True},
    "global isomorphic": {"global_pruning": True, "isomorphic": True},
}


def prune(subject: Subject, model: nn.Module, scope: str, extra: str) -> nn.Module:
    """Bisect the pruning ratio for the largest model within the budget."""
    limit = BUDGET * prunella.count_macs(model, subject.example())
    low, high = 0.0, 0.5
    best: tuple[int, nn.Module] | None = None
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        found = _at(subject, model, ratio, scope, extra)
        macs = prunella.count_macs(found, subject.example())
        if macs > limit:
            low = ratio
            continue
        high = ratio
        if best is None or macs > best[0]:
            best = macs, found
    if best is None:
        raise RuntimeError(f"no pruning ratio up to 0.5 leaves at most {BUDGET:.0%} of the MACs")
    return best[1]


def _at(subject: Subject, model: nn.Module, ratio: float, scope: str, extra: str) -> nn.Module:
    model = copy.deepcopy(model)
    options = subject.peer[extra](model)
    after = options.pop("after", None)
    ignored = subject.heads(model) + options.pop("ignored", [])
    if options.get("prune_num_heads"):
        options["head_pruning_ratio"] = ratio
    pruner = tp.pruner.BasePruner(
        model,
        subject.example(),
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=ignored,
        **SCOPES[scope],
        **options,
    )
    pruner.step()
    if after is not None:
        after(model, pruner)
    return model


def settings(subject: Subject) -> dict[str, Any]:
    """Return what to call for each setting, by its name."""
    return {
        " ".join(filter(None, (scope, extra))): partial(prune, scope=scope, extra=extra)
        for extra in subject.peer
        for scope in SCOPES
    }
