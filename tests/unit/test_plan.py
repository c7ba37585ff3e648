"""Budgets and plans as values."""

import pytest

from prunella import Budget, Plan
from prunella.errors import ConfigError, PlanMismatchError
from prunella.plan import Costs, compose

DENSE = Costs(macs=1000, params=300)


@pytest.mark.parametrize(
    ("bound", "limit"),
    [(0.5, 500), ("50%", 500), ("0.25", 250), (1.0, 1000), (800, 800), ("20", 20)],
)
def test_a_bound_is_a_share_or_a_count(bound: float | int | str, limit: int) -> None:
    assert Budget(macs=bound).resolve(DENSE) == {"macs": limit}


@pytest.mark.parametrize("bound", [1.5, -1, 0, "x", "200%", True, float("nan"), "1.5"])
def test_another_bound_is_refused_with_the_rule(bound: float | int | str) -> None:
    with pytest.raises(ConfigError, match="is a share of the dense model"):
        Budget(params=bound)


def test_a_budget_bounds_something() -> None:
    with pytest.raises(ConfigError, match="give `macs`, `params` or both"):
        Budget()


def _plan(
    kept: dict[str, dict[int, tuple[int, ...]]], channels: dict[str, tuple[int, ...]]
) -> Plan:
    sizes = {name: 4 for name in channels}
    return Plan("digest", channels, sizes, kept, {}, DENSE, DENSE)


def test_plans_compose_in_the_originals_indices() -> None:
    first = _plan({"w": {0: (0, 2, 5, 7)}}, {"g": (1, 2, 3, 0)})
    second = _plan({"w": {0: (1, 3)}, "v": {1: (0,)}}, {"g": (0, 3)})
    whole = compose(first, second)
    assert whole.kept == {"w": {0: (2, 7)}, "v": {1: (0,)}}
    assert whole.channels == {"g": (1, 0)}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 1}', '{"schema": 99}'])
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(PlanMismatchError, match=r"not a plan|schema"):
        Plan.from_json(text)
