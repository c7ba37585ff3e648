"""Prune with Torch-Pruning, as its own CIFAR recipe does."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunella
from benchmarks.accuracy.case import BATCH, Case, Method, Pruned

TOOL = "Torch-Pruning"
STEPS = 400
RECIPE = "group L2, global, all"
"""The recipe's own choice for a pretrained network that is not trained sparse first."""

GRADIENTS = ("Taylor", "Hessian")


def importances() -> dict[str, Callable[[], Any]]:
    """List what makes each importance."""
    from torch_pruning import importance as tp  # type: ignore[import-untyped]

    return {
        "group L2": partial(tp.GroupMagnitudeImportance, p=2),
        "group L1": partial(tp.GroupMagnitudeImportance, p=1),
        "group L2 / max": partial(tp.GroupMagnitudeImportance, p=2, normalizer="max"),
        "first L1": partial(tp.GroupMagnitudeImportance, p=1, group_reduction="first"),
        "FPGM": partial(tp.FPGMImportance, p=2),
        "LAMP": partial(tp.LAMPImportance, p=2),
        "BN scale": tp.BNScaleImportance,
        "random": tp.RandomImportance,
        "Taylor": tp.GroupTaylorImportance,
        "Hessian": tp.GroupHessianImportance,
    }


def methods() -> list[Method]:
    """List every setting."""
    return [
        Method(
            TOOL,
            f"{name}, {scope}, {where}",
            partial(prune, importance=name, scope=scope, where=where),
            looks_at="images and labels" if name in GRADIENTS else "",
            seeded=name in (*GRADIENTS, "random"),
            screened=True,
        )
        for name, scope, where in product(importances(), ("global", "local"), ("all", "inside"))
    ]


def prune(case: Case, importance: str, scope: str, where: str) -> Iterator[Pruned]:
    """Prune step by step, and yield what there is when each budget is met."""
    from torch_pruning.pruner import BasePruner  # type: ignore[import-untyped]

    torch.manual_seed(case.seed)
    model = copy.deepcopy(case.dense)
    ignored: list[nn.Module] = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if where == "inside":
        names = ("conv1", "conv2")  # the stem, and what each block adds to the stream
        convs = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
        ignored += [m for name, m in convs.items() if name == names[0] or name.endswith(names[1])]
    if importance in GRADIENTS:
        _differentiate(model, case, squared=importance == "Hessian")
    pruner = BasePruner(
        model,
        case.example,
        importance=importances()[importance](),
        global_pruning=scope == "global",
        iterative_steps=STEPS,
        pruning_ratio=1.0,
        ignored_layers=ignored,
    )
    positions = _positions(model, case.example)
    limits = {removed: case.limit(removed) for removed in case.budgets}
    left = list(case.budgets)
    for _ in range(STEPS):
        for group in pruner.step(interactive=True):
            group.prune()
            macs = sum(m.weight.numel() * count for m, count in positions.items())
            while left and macs <= limits[left[0]]:
                yield left.pop(0), copy.deepcopy(model)
            if not left:
                return
    raise RuntimeError(f"nothing left to prune before {left[0]}% of the MACs were removed")


def _positions(model: nn.Module, example: Tensor) -> dict[Any, int]:
    """Count how often each layer's weight is used: thousands of counts of MACs are then cheap."""
    found: dict[Any, int] = {}

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        del inputs
        found[module] = output[0, 0].numel() if output.dim() > 2 else 1

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(hook) for layer in layers]
    with torch.no_grad():
        model(example)
    for handle in handles:
        handle.remove()
    macs = sum(module.weight.numel() * count for module, count in found.items())
    assert macs == prunella.count_macs(model, example), "these networks have no other MACs"
    return found


def _differentiate(model: nn.Module, case: Case, *, squared: bool) -> None:
    """Leave in every parameter the mean gradient, or the mean of single images' squared ones."""
    model.eval()
    size = 1 if squared else BATCH
    sums = {p: torch.zeros_like(p) for p in model.parameters()}
    for x, y in zip(case.images.split(size), case.labels.split(size), strict=True):
        model.zero_grad()
        F.cross_entropy(model(x), y, reduction="sum").backward()
        for p, total in sums.items():
            assert p.grad is not None, "every parameter is used"
            total += p.grad.square() if squared else p.grad
    for p, total in sums.items():
        p.grad = total / len(case.labels)
