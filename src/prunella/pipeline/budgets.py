"""Budgets as shares of the dense model, and shares as what may remain of it."""

from collections.abc import Mapping

from prunella.allocating import allocate_and_bound
from prunella.pipeline.context import Context
from prunella.plan import Budget
from prunella.scoring import score


def reachable(context: Context, budget: Budget) -> dict[str, float]:
    """Give the budget as shares of the dense model.

    Raises:
        BudgetError: No plan fits; said before anything is trained.
        NothingToPruneError: The budget is met by the dense model.
    """
    scores = score(context.dense, context.groups)  # which channels go changes no cost
    allocate_and_bound(
        context.groups,
        scores,
        budget,
        multiple_of=context.config.prune.multiple_of,
        latency_model=context.latency_model,
    )
    limits = budget.resolve(context.priced)
    return {name: _share(limit, getattr(context.priced, name)) for name, limit in limits.items()}


def asked(context: Context) -> dict[str, float]:
    """Give the budget of the settings as shares of the dense model; {} where there is none."""
    section = context.config.budget
    if not section.asked:
        return {}
    limits = section.to_budget().resolve(context.priced)
    return {name: limit / getattr(context.priced, name) for name, limit in limits.items()}


def _share(limit: float, dense: float) -> float:
    """Write a limit as the shortest share that means it: the 0.7 the user gave, where it was one.

    Counts are whole numbers, rounded down; times are not.

    Example:
        >>> _share(699, 999), _share(500, 999)
        (0.7, 0.501)
    """
    for digits in range(1, 9):
        share = round(limit / dense, digits)
        if type(limit)(share * dense) == limit:
            return share
    return limit / dense


def shares(target: Mapping[str, float]) -> str:
    """Write a target for people: `50.0% of the MACs, 40.0% of the params`."""
    names = {
        "macs": "MACs",
        "params": "parameters",
        "weight_bytes": "bytes of weights",
        "activation_bytes": "bytes of activations",
        "latency": "latency",
    }
    return ", ".join(f"{share:.1%} of the {names[name]}" for name, share in target.items())


def budget_of(context: Context, target: Mapping[str, float]) -> Budget:
    """Return the counts, and the milliseconds, that shares of the dense model's costs mean."""
    return Budget(**{name: _limit(context, name, share) for name, share in target.items()})


def _limit(context: Context, name: str, share: float) -> int | str:
    dense = getattr(context.priced, name)
    if name == "latency":
        return f"{share * dense}ms"
    # A bound of one would be read as a share.
    return max(int(share * dense + 1e-6), 2)
