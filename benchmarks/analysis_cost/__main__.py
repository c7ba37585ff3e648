"""Measure every way to analyse every network, and write the table, row by row."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunella
from benchmarks import analysis_cost
from benchmarks.analysis_cost import table
from benchmarks.analysis_cost.subjects import SUBJECTS, Batch, Subject
from benchmarks.analysis_cost.work import Work
from prunella.calibration import Calibration
from prunella.sensitivity import Samplewise, removed

Row = dict[str, Any]

PROBES = 4
CONFIDENCE = 0.95


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
            "accuracy": float(right.mean()),
            "loss, first half": float(losses[:half].mean()),
            "loss, second half": float(losses[half:].mean()),
            "accuracy, first half": float(right[:half].mean()),
            "accuracy, second half": float(right[half:].mean()),
        }
        return value


@dataclass(eq=False)
class Analysis:
    """Everything that the ways to analyse one network need."""

    subject: Subject

    @cached_property
    def model(self) -> nn.Module:
        """The dense network."""
        return self.subject.build()

    @cached_property
    def images(self) -> tuple[Sequence[Batch], Sequence[Batch]]:
        """The batches it is judged on, and those for calibration."""
        return self.subject.images(self.model)

    @cached_property
    def judge(self) -> Judge:
        """Judges on all of the images."""
        return Judge(self.images[0])

    @cached_property
    def given(self) -> tuple[nn.Module, prunella.Groups, prunella.Scores]:
        """The model, its groups and their scores."""
        groups = prunella.couple(prunella.trace(self.model, self.images[0][0][0][:1]))
        return self.model, groups, prunella.score(self.model, groups, "magnitude")

    @cached_property
    def work(self) -> Work:
        """Counts evaluations."""
        samples = sum(len(labels) for _, labels in self.judge.batches)
        return Work(self.given[1], self.subject.ratios, samples)

    def one(self) -> float:
        """Return the CPU seconds of one evaluation, at this moment."""
        return min(timed(lambda: self.judge(self.model))[1] for _ in range(2))

    def ways(self) -> Iterator[tuple[str, Callable[[], Row]]]:
        """Yield the name of every row, and what measures it."""
        yield "plain", partial(self.measured, 0, self.work.plain)
        yield "exact", partial(self.measured, None, self.work.exact)
        for count in self.subject.samples:
            yield f"estimate, {count} samples", partial(self.estimated, count)
        yield f"one pass, {count} samples", partial(self.one_pass, count)
        yield "early stop", self.stopped

    def measured(self, memory: int | None, work: float) -> Row:
        """Analyse in full."""
        found, cpu, clock = timed(
            lambda: prunella.analyze(*self.given, self.judge, memory=memory, **self._settings)
        )
        values = cells(found)
        row = {"cpu": cpu, "clock": clock, "work": work, "loss": values}
        figures = [self.judge.seen[value] for value in [found.baseline, *values]]
        return row | {key: [one[key] for one in figures[1:]] for key in figures[0]}

    def estimated(self, count: int) -> Row:
        """Predict from distances of so many samples."""
        data = calibration(self.images[1], count)
        found, cpu, clock = timed(lambda: self._estimate(data))
        work = self.work.estimate(count, PROBES)
        return {"cpu": cpu, "clock": clock, "work": work, "loss": cells(found)}

    def one_pass(self, count: int) -> Row:
        """Predict from gradients of so many samples."""
        data = calibration(self.images[1], count)
        model, groups, _ = self.given

        def predicted() -> prunella.Sensitivity:
            return self._estimate(
                Calibration(data.batches),
                curvature=prunella.score(model, groups, "fisher", data),
            )

        found, cpu, clock = timed(predicted)
        work = self.work.one_pass(count, PROBES)
        return {"cpu": cpu, "clock": clock, "work": work, "loss": cells(found)}

    def stopped(self) -> Row:
        """Measure the accuracy, each value only as far as it is settled."""
        images, labels = (torch.cat(part) for part in zip(*self.images[0], strict=True))
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
        batches = list(zip(images[order].split(50), labels[order].split(50), strict=True))
        seen: list[int] = []

        @torch.no_grad()
        def right(model: nn.Module, batch: Batch) -> Tensor:
            if batch is batches[0]:
                seen.append(0)
            seen[-1] += len(batch[1])
            return model(batch[0]).argmax(1) == batch[1]

        settings = self._settings | {"metric": "accuracy", "higher_is_better": True}
        found, cpu, clock = timed(
            lambda: prunella.analyze(
                *self.given, Samplewise(batches, right), confidence=CONFIDENCE, **settings
            )
        )
        return {
            "cpu": cpu,
            "clock": clock,
            "work": self.work.stopped(seen[-self.work.cells :]),
            "accuracy": cells(found),
            "baseline": found.baseline,
            "samples": sum(seen[-self.work.cells :]) / self.work.cells / len(labels),
        }

    @property
    def _settings(self) -> dict[str, Any]:
        return {"metric": "loss", "higher_is_better": False, "ratios": self.subject.ratios}

    def _estimate(self, data: Calibration, **more: Any) -> prunella.Sensitivity:
        settings = self._settings | {"probes": PROBES, **more}
        return prunella.estimate(*self.given, data, self.judge, **settings)


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return a result, the CPU seconds it took, and those on the clock."""
    clock, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, time.process_time() - cpu, time.perf_counter() - clock


def cells(found: prunella.Sensitivity) -> list[float]:
    """Return the values of all groups and ratios at which something is removed."""
    return [
        value
        for name, curve in sorted(found.curves.items())
        for ratio, value in zip(found.ratios, curve, strict=True)
        if removed(ratio, found.channels[name])
    ]


def calibration(batches: Sequence[Batch], count: int) -> Calibration:
    """Take the first samples of some batches, with the loss that their labels give."""
    images, labels = (torch.cat(part)[:count] for part in zip(*batches, strict=True))
    size = min(count, 64)
    targets = labels.split(size)
    return Calibration(
        [((part,), {}) for part in images.split(size)],
        lambda outputs, index: F.cross_entropy(outputs, targets[index]),
    )


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
    parser.add_argument("--resume", action="store_true", help="keep the rows --out has")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(SUBJECTS))
    if unknown:
        parser.error(f"no such network: {', '.join(unknown)}; there are {', '.join(SUBJECTS)}")
    torch.set_num_threads(1)
    found = table.read(options.out) if options.resume else {}
    for key in options.names or SUBJECTS:
        subject = SUBJECTS[key]
        analysis = Analysis(subject)
        network = found.setdefault(key, {"name": subject.name, "rows": {}})
        network |= {"groups": len(analysis.given[1]), "ratios": subject.ratios}
        print(subject.name, flush=True)
        for name, way in analysis.ways():
            if name in network["rows"]:
                continue
            before = analysis.one()
            row = way()
            row["one"] = (before + analysis.one()) / 2
            network["rows"][name] = row
            print(f"  {name}: {row['cpu']:.0f} s of CPU, {row['work']:.1f} evaluations", flush=True)
            table.write(found, options.out)
    table.write(found, options.out)
    rows = [network["rows"] for network in found.values()]
    return int(any(each["plain"]["loss"] != each["exact"]["loss"] for each in rows))


if __name__ == "__main__":
    sys.exit(main())
