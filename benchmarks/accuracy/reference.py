"""The rule of the reference (Vitis AI Optimizer 3.5), on Prunella's groups."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import prunella
from benchmarks.accuracy.case import Case, Method, Pruned, accuracy

TOOL = "reference's rule"
STEM = "conv1"
HALVINGS = 40


def methods() -> list[Method]:
    """List the rule on all groups, and inside blocks alone."""
    return [
        Method(TOOL, where, partial(prune, where=where), "images and labels", seeded=True)
        for where in ("all", "inside")
    ]


def prune(case: Case, where: str) -> Iterator[Pruned]:
    """Analyse once; bisect the threshold for each budget."""
    groups = prunella.couple(prunella.trace(case.dense, case.example))
    scores = first_l1(case, groups)
    folder = Path(tempfile.gettempdir()) / "prunella-accuracy"
    folder.mkdir(exist_ok=True)
    sensitivity = prunella.analyze(
        case.dense,
        groups,
        scores,
        lambda model: accuracy(model, case.images, case.labels),
        metric="accuracy",
        higher_is_better=True,
        record=folder / f"{case.network}-{len(case.labels)}-{case.seed}.jsonl",
        data=f"{len(case.labels)} images, seed {case.seed}",
    )
    curves = {
        name: curve for name, curve in sensitivity.values.items() if where == "all" or name != STEM
    }

    def plan_of(threshold: float) -> prunella.Plan | None:
        ratios = ratios_within(curves, sensitivity.ratios, sensitivity.baseline, threshold)
        return prunella.allocate(groups, scores, ratios) if any(ratios.values()) else None

    dense = prunella.count_macs(case.dense, case.example)
    for removed in case.budgets:
        threshold = bisect(
            lambda t: plan.after.macs if (plan := plan_of(t)) else dense, case.limit(removed)
        )
        plan = plan_of(threshold)
        assert plan is not None, "a budget below the dense network's needs a plan"
        yield removed, prunella.transform(case.dense, plan, case.example)


def first_l1(case: Case, groups: prunella.Groups) -> prunella.Scores:
    """Score a channel by the L1 norm of its row in the group's first convolution."""
    weights = dict(case.dense.named_parameters())
    values = {}
    for group in groups:
        first = next(a for a in group.axes if a.dim == 0 and weights[a.tensor].dim() > 1)
        rows = weights[first.tensor].detach().abs().flatten(1).sum(1).double().numpy()
        values[group.name] = rows[group.axes[first]].reshape(group.channels, -1).sum(1)
    return prunella.Scores("first-l1", values)


def ratios_within(
    curves: Mapping[str, tuple[float, ...]],
    ratios: tuple[float, ...],
    baseline: float,
    threshold: float,
) -> dict[str, float]:
    """Give each group the last ratio before its relative change first exceeds the threshold."""
    found = {}
    for name, curve in curves.items():
        found[name] = 0.0
        for ratio, value in zip(ratios, curve, strict=True):
            if abs(baseline - value) / (baseline + 1e-5) > threshold:
                break
            found[name] = ratio
    return found


def bisect(macs: Callable[[float], int], limit: int) -> float:
    """Return the smallest threshold whose MACs are within the limit.

    Raises:
        RuntimeError: Even the largest threshold leaves more.
    """
    low, high = 1e-5, 1 - 1e-5
    if macs(high) > limit:
        raise RuntimeError(f"a threshold of {high} leaves {macs(high):,} MACs of {limit:,} allowed")
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if macs(middle) <= limit:
            high = middle
        else:
            low = middle
    return high
