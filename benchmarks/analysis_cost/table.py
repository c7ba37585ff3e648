"""The result: one network after the other, as JSON and as a page."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import analysis_cost

PACKAGES = ("torch", "torchvision", "timm")
HEAD = "way | CPU seconds | evaluations | cheaper | same numbers | rank, loss | rank, accuracy"


def write(found: dict[str, Any], out: Path) -> None:
    """Write both files, each put in place in one step."""
    out.parent.mkdir(parents=True, exist_ok=True)
    record = json.dumps({"versions": _versions(), "networks": found}, indent=1) + "\n"
    for suffix, text in ((".json", record), (".md", page(found))):
        fresh = out.with_suffix(suffix + ".new")
        fresh.write_text(text)
        fresh.replace(out.with_suffix(suffix))


def read(out: Path) -> dict[str, Any]:
    """Return the networks that an earlier run wrote."""
    path = out.with_suffix(".json")
    found: dict[str, Any] = json.loads(path.read_text())["networks"] if path.exists() else {}
    return found


def page(found: dict[str, Any]) -> str:
    """Write the Markdown page."""
    lines = [
        "# What the analysis costs",
        "",
        f"`python -m benchmarks.analysis_cost` with {', '.join(_versions())}.",
        "",
        "Protocol" + (analysis_cost.__doc__ or "").partition("Protocol")[2].rstrip(),
    ]
    for network in found.values():
        lines += ["", *_section(network)]
    return "\n".join(lines) + "\n"


def _section(network: dict[str, Any]) -> list[str]:
    plain = network["rows"][0]
    ratios = ", ".join(map(str, network["ratios"]))
    halves = network["halves"]
    noise = (
        f" *halves* agree to {halves['loss']:.3f} (loss) and {halves['accuracy']:.3f} (accuracy)."
        if halves
        else ""
    )
    return [
        f"## {network['name']}",
        "",
        f"{network['groups']} groups at ratios {ratios}; one evaluation takes "
        f"{plain['one']:.2f} s of CPU.{noise}",
        "",
        f"| {HEAD} |",
        "| --- " * (HEAD.count("|") + 1) + "|",
        *(_line(row, plain) for row in network["rows"]),
    ]


def _line(row: dict[str, Any], plain: dict[str, Any]) -> str:
    ranks = [f"{row[name]:.3f}" if name in row else "" for name in ("loss", "accuracy")]
    cells = [
        row["name"],
        f"{row['cpu']:.0f}",
        f"{row['cpu'] / row['one']:.1f}",
        f"{plain['cpu'] / row['cpu']:.1f}x",
        "yes" if row["identical"] else "no",
        *ranks,
    ]
    return "| " + " | ".join(cells) + " |"


def _versions() -> list[str]:
    return [
        f"Python {platform.python_version()}",
        *(f"{name} {version(name)}" for name in PACKAGES),
    ]
