"""Rows of the results: what is there, and what is still due."""

from collections.abc import Iterable
from typing import Any

from benchmarks.accuracy.case import Method
from benchmarks.record import Row

Point = tuple[int, bool]
"""Percent of the MACs removed, and whether batch norms were recalibrated."""

SCREEN = 512
"""So many of the calibration images compare settings of which not all are tested."""

MARGIN = 3.0
"""Settings this many points behind the tool's best on those images are not tested."""

NAME = ("tool", "setting", "training")
KEY = ("network", "tool", "setting", "bn", "training", "removed", "seed")
PACKAGES = ("prunella", "torch", "torch-pruning")


def key(row: Row) -> tuple[Any, ...]:
    """Tell rows apart."""
    return tuple(row.get(name) for name in KEY)


def merged(rows: Iterable[Row], fresh: Row) -> list[Row]:
    """Put a row in the place of the one that had its key; how that was screened stays known."""
    rows = list(rows)
    known = [{"screened": r["screened"]} for r in rows if key(r) == key(fresh) and "screened" in r]
    return [*(r for r in rows if key(r) != key(fresh)), {**(known or [{}])[0], **fresh}]


def due(
    rows: Iterable[Row],
    method: Method,
    place: tuple[str, int],
    budgets: Iterable[int],
    *,
    screening: bool,
) -> dict[Point, bool]:
    """List the points of a method that have still to be measured, and which are to be tested.

    Args:
        rows: What is there.
        method: The method.
        place: Network and seed.
        budgets: Percents of the MACs removed.
        screening: Whether methods are now compared on the calibration images only.
    """
    network, seed = place
    rows, budgets = list(rows), list(budgets)
    there = {key(row): row for row in rows}
    found: dict[Point, bool] = {}
    for removed in method.at or budgets:
        if removed not in budgets:
            continue
        for bn in (False, True)[: 1 + method.recalibrates]:
            if seed and not (method.seeded or bn):
                continue
            named = {"network": network, "tool": method.tool, "setting": method.setting, "bn": bn}
            point = {**named, **trained(method), "removed": removed}
            row = there.get(key({**point, "seed": seed}), {})
            test = not method.screened or (not screening and contends(rows, point, seed))
            known = "failure" in row or "accuracy" in row or ("screened" in row and not test)
            if not known and (test or screening):
                found[removed, bn] = test
    return found


def trained(method: Method) -> Row:
    """Return what a row says of the finetuning."""
    return {} if method.training is None else {"training": str(method.training)}


def contends(rows: Iterable[Row], point: Row, seed: int) -> bool:
    """Tell whether a setting's point is to be tested.

    With the first seed those near the tool's best on the calibration images are, with further seeds
    the one that was best on test.
    """
    same = ("network", "tool", "bn", "removed")
    figure, margin = ("accuracy", 0.0) if seed else ("screened", MARGIN)
    beside = {
        row["setting"]: row[figure]
        for row in rows
        if row["seed"] == 0 and figure in row and all(row[k] == point[k] for k in same)
    }
    own = beside.get(point["setting"])
    return own is not None and own >= max(beside.values()) - margin
