"""What `prunella suggest` predicts of a budget, and what pruning to it then leaves.

    PRUNELLA_DATA=../shared/data python -m benchmarks.suggested [--work FOLDER] [networks...]

The table of `suggest` is made twice: from its quick estimate, and from the sensitivity that
`prunella analyze` measures. Then the network is pruned to each of these budgets, as
`prunella prune` does it, and judged before any finetuning, by the same images that predictions are
about: the valid split of the task. Predictions from the estimate are of plans of their own, so they
may differ from what came for two reasons. Settings are the defaults, but for bfloat16 in the
analysis and one thread. A work folder that is there is gone on with.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.record import Row
from prunella import pipeline
from prunella.config import load
from prunella.errors import PrunellaError
from prunella.progress import rich_progress

OUT = Path("benchmarks") / "results" / "suggested"
PACKAGES = ("prunella", "torch")
TASKS: Mapping[str, Mapping[str, Any]] = {
    "digits": {"task.spec": "digits"},
    "ResNet-20": {"task.spec": "cifar10", "task.options": {"depth": 20}},
    "ResNet-56": {"task.spec": "cifar10", "task.options": {"depth": 56}},
}
SETTINGS = {"analyze.precision": "bf16", "run.threads": 1, "run.latency_seconds": 0.1}


def measure(name: str, settings: Mapping[str, Any], folder: Path) -> Iterator[Row]:
    """Predict all budgets of the table in both ways, and prune to each."""
    settings = {**SETTINGS, **settings}
    # In a folder of its own: where the sensitivity is on record, nothing is estimated.
    guessed = pipeline.suggest(_config(settings, folder / "estimated"), rich_progress)
    work = folder / "measured"
    pipeline.analyze(_config(settings, work), rich_progress)
    known = pipeline.suggest(_config(settings, work), rich_progress)
    estimates = {row.budget["macs"]: row.metric for row in guessed.rows}
    for row in known.rows:
        budget = row.budget["macs"]
        found = pipeline.prune(_config({**settings, "budget.macs": budget}, work), rich_progress)
        [attempt] = found.record.rounds[-1].attempts
        yield {
            "network": name,
            "metric": known.metric,
            "dense": known.baseline,
            "budget": budget,
            "estimated": estimates.get(budget),
            "predicted": row.metric,
            "pruned": attempt.pruned_metric,
        }


def _config(settings: Mapping[str, Any], folder: Path) -> Any:
    return load(None, {**settings, "run.folder": str(folder)})


def page(rows: list[Row]) -> str:
    """Write the table of each network."""
    lines = [
        "# Budgets: predicted, and pruned to",
        "",
        "`python -m benchmarks.suggested` with " + ", ".join(record.versions(PACKAGES)) + ".",
        "",
        *(__doc__ or "").split("\n\n", 2)[2].strip().splitlines(),
    ]
    for name in dict.fromkeys(row["network"] for row in rows):
        mine = [row for row in rows if row["network"] == name]
        lines += [
            "",
            f"## {name}",
            "",
            f"Before: {mine[0]['metric']} {mine[0]['dense']:.4f}.",
            "",
            "| MACs that may remain | predicted, estimate | predicted, measured | pruned |",
            "| --- | --- | --- | --- |",
        ]
        for row in mine:
            values = (row["estimated"], row["predicted"], row["pruned"])
            shown = ["" if value is None else f"{value:.4f}" for value in values]
            lines.append(f"| {row['budget']:.0%} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def main(typed: list[str] | None = None) -> int:
    """Measure the networks that are named, or all."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.suggested",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", help=f"only these of: {', '.join(TASKS)}")
    folder = Path(tempfile.gettempdir()) / "prunella-suggested"
    parser.add_argument("--work", type=Path, default=folder, help="the folder to work in")
    parser.add_argument("--out", type=Path, default=OUT, help="written with .json and .md")
    options = parser.parse_args(typed)
    for name in options.names or TASKS:
        if name not in TASKS:
            parser.error(f"no network called {name}; there are {', '.join(TASKS)}")
        others = [row for row in record.read(options.out) if row["network"] != name]
        try:
            mine = list(measure(name, TASKS[name], options.work / name))
        except PrunellaError as cause:
            print(f"{name}: {cause}", file=sys.stderr)
            return 1
        rows = sorted([*others, *mine], key=lambda row: list(TASKS).index(row["network"]))
        record.write(rows, options.out, PACKAGES, page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
