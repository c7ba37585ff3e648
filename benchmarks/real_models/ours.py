"""Prune with Prunella: its default, and by the damage measured on unlabelled inputs."""

import math
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import prunella
from benchmarks.real_models.subject import Subject

BUDGET = 0.9


def by_default(subject: Subject, model: nn.Module, cache: Path) -> nn.Module:
    """Prune in one call, without data."""
    del cache
    return prunella.prune(model, subject.example(), macs=BUDGET).model


def by_damage(subject: Subject, model: nn.Module, cache: Path) -> nn.Module:
    """Analyse how far the outputs move with each group pruned, and spend where they move least."""
    sensitivity = analysis(subject, model, cache)
    result = prunella.prune(model, subject.example(), macs=BUDGET, damage=sensitivity.damage)
    return result.model


def analysis(subject: Subject, model: nn.Module, cache: Path) -> prunella.Sensitivity:
    """Measure every group; what was measured stays in the cache."""
    inputs = list(subject.unlabelled())
    with torch.inference_mode():
        dense = [model(*batch) for batch in inputs]
    groups = prunella.couple(prunella.trace(model, subject.example()))
    cache.mkdir(parents=True, exist_ok=True)
    return prunella.analyze(
        model,
        groups,
        prunella.score(model, groups),
        partial(_distance, subject, inputs, dense),
        metric="distance from the dense model's outputs",
        higher_is_better=False,
        ratios=subject.ratios,
        record=cache / f"{subject.name.split(',')[0].replace(' ', '-')}.jsonl",
        data=subject.note,
        progress=lambda done, total: print(f"\r{done}/{total}", end="", flush=True),
    )


def _distance(
    subject: Subject, inputs: list[tuple[Tensor, ...]], dense: list[Tensor], model: nn.Module
) -> float:
    with torch.inference_mode():
        parts = [
            subject.distance(model(*batch), there)
            for batch, there in zip(inputs, dense, strict=True)
        ]
    mean = float(torch.cat(parts).double().mean())
    return mean if math.isfinite(mean) else torch.finfo(torch.float32).max


SETTINGS = {"default": by_default, "damage": by_damage}
