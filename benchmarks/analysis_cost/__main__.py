"""Measure every way to analyse every network, and write the table."""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import nn

import prunella
from benchmarks import analysis_cost
from benchmarks.analysis_cost import table
from benchmarks.analysis_cost.subjects import SUBJECTS, Batch, Subject
from prunella.calibration import Calibration
from prunella.sensitivity import removed

Row = dict[str, Any]

PROBES = 6
HALVES = ("first", "second")


@dataclass
class Judge:
    """The cross-entropy on some batches; keeps the other figures of every model it judged."""

    batches: Sequence[Batch]
    seen: dict[float, dict[str, float]] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> float:
        """Return the cross-entropy."""
        outputs = torch.cat([model(images) for images, _ in self.batches])
        labels = torch.cat([found for _, found in self.batches])
        losses = F.cross_entropy(outputs, labels, reduction="none").double()
        right = (outputs.argmax(1) == labels).double()
        value = float(losses.mean())
        half = len(labels) // 2
        self.seen[value] = {
            "accuracy": -float(right.mean()),
            "loss, first half": float(losses[:half].mean()),
            "loss, second half": float(losses[half:].mean()),
            "accuracy, first half": -float(right[:half].mean()),
            "accuracy, second half": -float(right[half:].mean()),
        }
        return value


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return a result, the CPU seconds it took, and those on the clock."""
    clock, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, time.process_time() - cpu, time.perf_counter() - clock


def cells(found: prunella.Sensitivity) -> np.ndarray:
    """Return the values of all groups and ratios at which something is removed."""
    return np.array(
        [
            value
            for name, curve in found.curves.items()
            for ratio, value in zip(found.ratios, curve, strict=True)
            if removed(ratio, found.channels[name])
        ]
    )


def measure(subject: Subject) -> dict[str, Any]:
    """Analyse one network in every way."""
    model = subject.build()
    judged, other = subject.images()
    groups = prunella.couple(prunella.trace(model, judged[0][0][:1]))
    scores = prunella.score(model, groups, "magnitude")
    judge = Judge(judged)
    one = statistics.median(timed(lambda: judge(model))[1] for _ in range(3))
    settings = {"metric": "loss", "higher_is_better": False, "ratios": subject.ratios}
    analyze = partial(prunella.analyze, model, groups, scores, judge, **settings)
    estimate = partial(prunella.estimate, model, groups, scores, evaluate=judge, **settings)

    def row(name: str, call: Callable[[], prunella.Sensitivity]) -> Row:
        found, cpu, clock = timed(call)
        print(f"  {name}: {cpu:.0f} s of CPU, {cpu / one:.1f} evaluations", flush=True)
        return {"name": name, "cpu": cpu, "clock": clock, "found": found, "one": one}

    rows = [row("plain", partial(analyze, memory=0)), row("exact", analyze)]
    for count in subject.samples:
        data = calibration(other, count)
        rows.append(row(f"estimate, {count} samples", partial(estimate, data=data, probes=PROBES)))
        if "fisher" in prunella.CRITERIA:
            rows.append(row(f"one pass, {count} samples", partial(_one_pass, estimate, data)))
    truth = cells(rows[0]["found"])
    seen = [judge.seen[value] for value in truth]
    for made in rows:
        found = made.pop("found")
        made["identical"] = bool((cells(found) == truth).all())
        if subject.trained:
            made["loss"] = rank(cells(found), truth)
            made["accuracy"] = rank(cells(found), [figures["accuracy"] for figures in seen])
    halves = {
        name: rank(*([figures[f"{name}, {half} half"] for figures in seen] for half in HALVES))
        for name in ("loss", "accuracy")
    }
    return {
        "name": subject.name,
        "groups": len(groups),
        "ratios": subject.ratios,
        "halves": halves if subject.trained else {},
        "rows": rows,
    }


def _one_pass(
    estimate: Callable[..., prunella.Sensitivity], data: Calibration
) -> prunella.Sensitivity:
    model, groups, _ = estimate.args  # type: ignore[attr-defined]
    curvature = prunella.score(model, groups, "fisher", Calibration(data.batches))
    return estimate(data=data, probes=PROBES, curvature=curvature)


def calibration(batches: Sequence[Batch], count: int) -> Calibration:
    """Take the first samples of some batches, with the loss that their labels give."""
    images, labels = (torch.cat(part)[:count] for part in zip(*batches, strict=True))
    size = min(count, 64)
    targets = labels.split(size)
    return Calibration(
        [((part,), {}) for part in images.split(size)],
        lambda outputs, index: F.cross_entropy(outputs, targets[index]),
    )


def rank(one: Any, other: Any) -> float:
    """Return Spearman's rank correlation."""
    return float(spearmanr(one, other).statistic)


def main() -> int:
    """Run the benchmark; the exit code is 1 if the exact mode gave another number somewhere."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.analysis_cost",
        description=analysis_cost.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    results = Path("benchmarks") / "results" / "analysis-cost"
    parser.add_argument("names", nargs="*", help=f"only these of: {', '.join(SUBJECTS)}")
    parser.add_argument("--out", type=Path, default=results, help="result, without its ending")
    parser.add_argument("--resume", action="store_true", help="keep the networks --out has")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(SUBJECTS))
    if unknown:
        parser.error(f"no such network: {', '.join(unknown)}; there are {', '.join(SUBJECTS)}")
    torch.set_num_threads(1)
    found = table.read(options.out) if options.resume else {}
    for key in options.names or SUBJECTS:
        if key not in found:
            print(SUBJECTS[key].name, flush=True)
            found[key] = measure(SUBJECTS[key])
            table.write(found, options.out)
    exact = [row for network in found.values() for row in network["rows"] if row["name"] == "exact"]
    return int(not all(row["identical"] for row in exact))


if __name__ == "__main__":
    sys.exit(main())
