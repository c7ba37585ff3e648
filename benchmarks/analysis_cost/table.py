"""The result: one network after the other, as JSON and as a page."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks import analysis_cost, record
from prunella.sensitivity.settling import LEAST, WITHIN

PACKAGES = ("torch", "timm")
HEAD = (
    "way | CPU seconds | evaluations in work | cheaper in CPU / in work | same numbers | "
    "rank, loss | rank, accuracy"
)


def write(found: dict[str, Any], out: Path) -> None:
    """Write both files, each put in place in one step."""
    out.parent.mkdir(parents=True, exist_ok=True)
    written = (
        json.dumps({"versions": record.versions(PACKAGES), "networks": found}, indent=1) + "\n"
    )
    for suffix, text in ((".json", written), (".md", page(found))):
        fresh = out.with_suffix(suffix + ".new")
        fresh.write_text(text)
        fresh.replace(out.with_suffix(suffix))


def read(out: Path) -> dict[str, Any]:
    """Return what an earlier run wrote, network by network, row by row."""
    path = out.with_suffix(".json")
    found: dict[str, Any] = json.loads(path.read_text())["networks"] if path.exists() else {}
    return found


def page(found: dict[str, Any]) -> str:
    """Write the Markdown page."""
    lines = [
        "# What the analysis costs",
        "",
        f"`python -m benchmarks.analysis_cost` with {', '.join(record.versions(PACKAGES))}.",
        "",
        "Protocol" + (analysis_cost.__doc__ or "").partition("Protocol")[2].rstrip(),
    ]
    for network in found.values():
        if "plain" in network["rows"]:
            lines += ["", *_section(network)]
    return "\n".join(lines) + "\n"


def rank(one: Any, other: Any) -> float:
    """Return Spearman's rank correlation."""
    return float(spearmanr(one, other).statistic)


def _most(halves: float) -> float:
    """Return what is expected of a perfect prediction, from how far halves of the data agree."""
    return float(np.sqrt(max(2 * halves / (1 + halves), 0)))


def _section(network: dict[str, Any]) -> list[str]:
    plain = network["rows"]["plain"]
    ratios = ", ".join(map(str, network["ratios"]))
    loss, accuracy = (
        rank(plain[f"{name}, first half"], plain[f"{name}, second half"])
        for name in ("loss", "accuracy")
    )
    return [
        f"## {network['name']}",
        "",
        f"{network['groups']} groups at ratios {ratios}: {len(plain['loss'])} values. One "
        f"evaluation takes {plain['one']:.2f} s of CPU. *halves* agree to {loss:.3f} (loss) and "
        f"{accuracy:.3f} (accuracy): *at most* {_most(loss):.3f} and {_most(accuracy):.3f}."
        + (f" {network['note']}" if "note" in network else ""),
        "",
        f"| {HEAD} |",
        "| --- " * (HEAD.count("|") + 1) + "|",
        *(_line(name, row, plain) for name, row in network["rows"].items()),
        *_early(network["rows"]),
    ]


def _line(name: str, row: dict[str, Any], plain: dict[str, Any]) -> str:
    ranks = ["", ""]
    if name == "early stop":
        ranks[1] = f"{rank(row['accuracy'], plain['accuracy']):.3f}"
    elif name not in ("plain", "exact"):
        ranks[0] = f"{rank(row['loss'], plain['loss']):.3f}"
        ranks[1] = f"{-rank(row['loss'], plain['accuracy']):.3f}"
    cells = [
        name,
        f"{row['cpu']:.0f}",
        f"{row['work']:.1f}",
        f"{_evaluations(plain) / _evaluations(row):.1f}x / {plain['work'] / row['work']:.1f}x",
        "yes" if row.get("loss") == plain["loss"] else "no",
        *ranks,
    ]
    return "| " + " | ".join(cells) + " |"


def _evaluations(row: dict[str, Any]) -> float:
    return float(row["cpu"] / row["one"])


def _early(rows: dict[str, Any]) -> list[str]:
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
