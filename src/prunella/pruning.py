"""All stages in one call: `prune(model, example_inputs, macs=0.5)`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from torch import nn

from prunella.allocating import Damage, allocate
from prunella.certifying import Certificate
from prunella.coupling import Exclude, couple
from prunella.criteria import Criterion
from prunella.errors import CertificateError, ConfigError, CouplingError, TransformError
from prunella.graph import Graph
from prunella.plan import Budget, Form, Groups, Heads, Plan
from prunella.probing import faithful
from prunella.scoring import score
from prunella.tracing import Inputs, positional, trace
from prunella.transforming import transform_and_prove, with_scales


@dataclass(frozen=True)
class Summary:
    """What was removed, and what could not be."""

    plan: Plan
    groups: Groups

    def __str__(self) -> str:
        """Return a table for people."""
        before, after = self.plan.before, self.plan.after
        lines = [
            f"{'':12}{'dense':>16}{'pruned':>16}{'left':>9}",
            f"{'MACs':12}{before.macs:>16,}{after.macs:>16,}{_share(after.macs, before.macs):>9}",
            f"{'parameters':12}{before.params:>16,}{after.params:>16,}"
            f"{_share(after.params, before.params):>9}",
            f"channels kept in {len(self.groups)} groups:",
        ]
        form = {"class": "the model's own class", "graph": "the captured graph, rewritten"}
        lines.insert(3, f"form: {form[self.plan.form]}")
        for name, kept in self.plan.channels.items():
            lines.append(f"  {name:40} {len(kept):>6} of {self.plan.sizes[name]}")
        lines.append(f"frozen: {len(self.groups.frozen)} groups")
        lines += [f"  {reason}" for reason in self.groups.why_frozen()]
        return "\n".join(lines)


def _share(after: int, before: int) -> str:
    return f"{after / before:.1%}" if before else "-"


@dataclass(frozen=True)
class PruneResult:
    """A pruned model, the plan that led to it, its proof, and a summary to print."""

    model: nn.Module
    plan: Plan
    certificate: Certificate
    summary: Summary

    @property
    def form(self) -> Form:
        """What came back: "class", the user's own, or "graph", the captured graph rewritten."""
        return self.plan.form


def prune(  # noqa: PLR0913 - one call for all stages
    model: nn.Module,
    example_inputs: Inputs,
    *,
    macs: float | int | str | None = None,
    params: float | int | str | None = None,
    ratio: float | Mapping[str, float] | None = None,
    criterion: str | Criterion = "magnitude",
    damage: Damage | None = None,
    exclude: Iterable[Exclude] = (),
    form: Form | Literal["auto"] = "auto",
    heads: Heads = "whole",
    example_kwargs: Mapping[str, Any] | None = None,
) -> PruneResult:
    """Trace, couple, score, allocate and transform in one call.

    Groups whose size is written into the model's code are left whole, or, where they are many, the
    captured graph comes back in the place of the class; the summary says which and names the lines.

    Args:
        model: Any module; left untouched.
        example_inputs: A tensor, or a tuple of positional arguments.
        macs: Budget: multiply-accumulates that may remain, a share (0.5, "50%") or a count.
        params: Budget: parameters that may remain, likewise. Both may be given.
        ratio: Instead of a budget: the share of channels every group loses, or one by group name.
        criterion: How channels are scored.
        damage: Predicted loss by group and kept channels (`Sensitivity.damage`).
        exclude: Modules to leave whole, by name, glob, regular expression or class.
        form: "class": the pruned model is of the user's own class, and what its code does not allow
            stays. "graph": it is the captured graph, rewritten, which trains and saves like any
            module. "auto": the class, unless sizes spelled out in its code hold back much.
        heads: "whole": attention loses whole heads. "inside": all heads stay, and each loses
            equally many of its positions.
        example_kwargs: Keyword arguments.

    Returns:
        The smaller model, the plan, the certificate, a summary.

    Raises:
        PrunellaError: Each stage raises its own; the model is left untouched.

    Example:
        >>> import torch, prunella
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
        >>> prunella.prune(net, torch.randn(1, 3, 8, 8), ratio=0.5).model[0].out_channels
        8
    """
    if (ratio is None) == (macs is None and params is None):
        raise ConfigError("give a budget (`macs`, `params` or both) or a `ratio`, and not both")
    args, kwargs = positional(example_inputs), dict(example_kwargs or {})
    groups = choose_form(trace(model, args, kwargs), tuple(exclude), form, heads)
    target = Budget(macs=macs, params=params) if ratio is None else ratio

    def cut(groups: Groups) -> tuple[nn.Module, Plan, Certificate]:
        plan = allocate(groups, score(model, groups, criterion), target, damage)
        plan = with_scales(model, plan, groups, (args, kwargs))
        pruned, proof = transform_and_prove(model, plan, args, kwargs, groups)
        return pruned, plan, proof

    try:
        pruned, plan, proof = cut(groups)
    except (TransformError, CertificateError, CouplingError):
        free = faithful(model, groups, args, kwargs)
        if free is groups:
            raise
        groups = free
        pruned, plan, proof = cut(groups)
    return PruneResult(pruned, plan, proof, Summary(plan, groups))


def choose_form(
    graph: Graph,
    exclude: tuple[Exclude, ...] = (),
    form: Form | Literal["auto"] = "auto",
    heads: Heads = "whole",
) -> Groups:
    """Couple in the form asked for; "auto" takes the user's own class wherever it will do.

    The class will not do where sizes that its code spells out hold more than a tenth of the
    multiply-accumulates.
    """
    if form == "graph" and graph.recorded:
        raise ConfigError(
            "this model could only be captured as one recorded run, whose course depends on the "
            'data; such a graph cannot take the model\'s place. Use form="class"'
        )
    groups = couple(graph, exclude, "graph" if form == "graph" else "class", heads)
    if form == "auto" and groups.code_binds and not graph.recorded:
        freer = couple(graph, exclude, "graph", heads)
        if held_back(groups, freer) > _HELD:
            return freer
    return groups


_HELD = 0.1


def held_back(groups: Groups, freer: Groups) -> float:
    """Return the share of multiply-accumulates that only `freer` groups could lower."""
    free = {axis for group in groups for axis in group.axes}
    more = [group for group in freer if not free & set(group.axes)]
    numbers = {n for group in more for n in range(group.start, group.start + group.channels)}
    costs = [
        (
            prod((term.factor, *map(len, term.dims))),
            any(numbers & set(d.tolist()) for d in term.dims),
        )
        for term in freer.terms
    ]
    return sum(n for n, held in costs if held) / max(sum(n for n, _ in costs), 1)
