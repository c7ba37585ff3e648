"""The page: one network after the other."""

from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks import analysis_cost, record
from benchmarks.record import Row
from prunella.sensitivity.settling import LEAST, WITHIN

PACKAGES = ("torch", "timm")
HEAD = (
    "way | CPU seconds | evaluations in work | cheaper in CPU / in work | same numbers | "
    "rank, loss | rank, accuracy"
)

ORDER = ("plain", "exact", "early stop", "estimate", "with slopes", "one pass")
"""Of the rows of a network."""


def networks(rows: list[Row]) -> dict[str, dict[str, Row]]:
    """Sort rows by network, then by way."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row["network"], {})[row["way"]] = row
    return found


def same(rows: dict[str, Row]) -> bool:
    """Say whether the exact way found the plain one's numbers, as far as there are both."""
    found = [rows[way]["loss"] for way in ("plain", "exact") if way in rows]
    return all(one == found[0] for one in found)


def page(rows: list[Row]) -> str:
    """Write the Markdown page."""
    lines = [
        "# What the analysis costs",
        "",
        f"`python -m benchmarks.analysis_cost` with {', '.join(record.versions(PACKAGES))}.",
        "",
        "Protocol" + (analysis_cost.__doc__ or "").partition("Protocol")[2].rstrip(),
    ]
    for name, ways in networks(rows).items():
        if "plain" in ways:
            lines += ["", *_section(name, ways)]
    return "\n".join(lines) + "\n"


def rank(one: Any, other: Any) -> float:
    """Return Spearman's rank correlation."""
    return float(spearmanr(one, other).statistic)


def _most(halves: float) -> float:
    """Return what is expected of a perfect prediction, from how far halves of the data agree."""
    return float(np.sqrt(max(2 * halves / (1 + halves), 0)))


def _section(name: str, ways: dict[str, Row]) -> list[str]:
    plain = ways["plain"]
    ratios = ", ".join(map(str, plain["ratios"]))
    loss, accuracy = (
        rank(plain[f"{metric}, first half"], plain[f"{metric}, second half"])
        for metric in ("loss", "accuracy")
    )
    return [
        f"## {name}",
        "",
        f"{plain['groups']} groups at ratios {ratios}: {len(plain['loss'])} values. One "
        f"evaluation takes {plain['one']:.2f} s of CPU. *halves* agree to {loss:.3f} (loss) and "
        f"{accuracy:.3f} (accuracy): *at most* {_most(loss):.3f} and {_most(accuracy):.3f}."
        + (f" {plain['note']}" if "note" in plain else ""),
        "",
        f"| {HEAD} |",
        "| --- " * (HEAD.count("|") + 1) + "|",
        *(_line(way, ways[way], plain) for way in sorted(ways, key=_place)),
        *_early(ways),
    ]


def _place(way: str) -> int:
    return ORDER.index(way.partition(",")[0])


def _line(way: str, row: Row, plain: Row) -> str:
    ranks = ["", ""]
    if way == "early stop":
        ranks[1] = f"{rank(row['accuracy'], plain['accuracy']):.3f}"
    elif way not in ("plain", "exact"):
        ranks[0] = f"{rank(row['loss'], plain['loss']):.3f}"
        ranks[1] = f"{-rank(row['loss'], plain['accuracy']):.3f}"
    cells = [
        way,
        f"{row['cpu']:.0f}",
        f"{row['work']:.1f}",
        f"{_evaluations(plain) / _evaluations(row):.1f}x / {plain['work'] / row['work']:.1f}x",
        "yes" if row.get("loss") == plain["loss"] else "no",
        *ranks,
    ]
    return "| " + " | ".join(cells) + " |"


def _evaluations(row: Row) -> float:
    return float(row["cpu"] / row["one"])


def _early(rows: dict[str, Row]) -> list[str]:
    if "early stop" not in rows:
        return []
    row = rows["early stop"]
    found, wanted = np.array(row["accuracy"]), np.array(rows["plain"]["accuracy"])
    off = np.abs(found - wanted)
    # The estimate is within this of the truth, or the truth is where the bounds said it was not.
    most = WITHIN * np.maximum(np.abs(found - row["baseline"]), LEAST)
    missed = (off > most + 1e-9).mean()
    return [
        "",
        f"*early stop* took {row['samples']:.0%} of the samples. {missed:.1%} of its values are "
        f"*off*; the largest difference is {off.max():.3f}, the mean {off.mean():.4f}.",
    ]
