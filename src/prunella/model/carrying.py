"""A pruned model carries the plan that led to it from the original."""

from torch import nn

from prunella.model.structure import check_model
from prunella.plan import Plan, compose

_PLAN = "_prunella_plan"


def plan_of(model: nn.Module) -> Plan | None:
    """Return the plan that led from the original model to this one, None if it was never pruned."""
    check_model(model)
    return getattr(model, _PLAN, None)


def carry(pruned: nn.Module, model: nn.Module, plan: Plan) -> None:
    """Let a pruned model carry the plan that made it of `model`, joined to what that carries."""
    known = plan_of(model)
    setattr(pruned, _PLAN, compose(known, plan) if known else plan)
