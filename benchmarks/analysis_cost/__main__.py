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
from benchmarks import analysis_cost, record
from benchmarks.analysis_cost import table
from benchmarks.analysis_cost.subjects import SUBJECTS, Batch, Subject
from benchmarks.analysis_cost.work import Work
from prunella.calibration import Calibration
from prunella.journal import Journal
from prunella.sensitivity import Samplewise, removed

Row = dict[str, Any]

PROBES = 4
CONFIDENCE = 0.95


@dataclass
class Judge:
    """The cross-entropy on some batches; keeps the other figures of every model it judged.

    Args:
        batches: What it judges on.
        bf16: Whether under autocast to bfloat16.
        seen: The other figures, by the cross-entropy.
        diary: Where figures are kept for going on after a kill, with the CPU seconds since the
            last; None: nowhere.
    """

    batches: Sequence[Batch]
    bf16: bool = False
    seen: dict[float, dict[str, float]] = field(default_factory=dict)
    diary: Journal | None = None
    _since: float = 0

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> float:
        """Return the cross-entropy."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            outputs = torch.cat([model(images) for images, _ in self.batches]).float()
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
        if self.diary is not None:
            now = time.process_time()
            entry = {"value": value, "seen": self.seen[value], "cpu": now - self._since}
            self.diary.append(entry)
            self._since = now
        return value

    def begin(self, diary: Journal | None) -> float:
        """Keep figures there from now on; return the CPU seconds that went into what it has."""
        self.diary, self._since = diary, time.process_time()
        entries = () if diary is None else diary.entries
        self.seen |= {entry["value"]: entry["seen"] for entry in entries}
        return float(sum(entry["cpu"] for entry in entries))


@dataclass(eq=False)
class Analysis:
    """Everything that the ways to analyse one network need."""

    subject: Subject
    out: Path

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
        return Judge(self.images[0], self.subject.bf16)

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

    @property
    def head(self) -> Row:
        """What every row of the network says."""
        return {"groups": len(self.given[1]), "ratios": list(self.subject.ratios)}

    def one(self) -> float:
        """Return the CPU seconds of one evaluation, at this moment."""
        return timed(lambda: self.judge(self.model))[1]

    def ways(self) -> Iterator[tuple[str, Callable[[], Row]]]:
        """Yield the name of every row, and what measures it; the quick ones first."""
        yield "plain", partial(self.measured, "plain", 0, self.work.plain)
        for count in self.subject.samples:
            yield f"estimate, {count} samples", partial(self.estimated, count)
        for count in self.subject.samples:
            name = f"with slopes, {count} samples"
            yield name, partial(self.estimated, count, slopes=True)
        yield f"one pass, {count} samples", partial(self.one_pass, count)
        yield "exact", partial(self.measured, "exact", None, self.work.exact)
        yield "early stop", self.stopped

    def measured(self, name: str, memory: int | None, work: float) -> Row:
        """Analyse in full; after a kill it goes on where it was."""
        values, figures = (
            self.out.with_suffix(f".{name}.{part}") for part in ("values", "figures")
        )
        known = self.judge.begin(Journal(figures, {"subject": self.subject.name}))
        found, cpu, clock = timed(
            lambda: prunella.analyze(
                *self.given,
                self.judge,
                memory=memory,
                record=values,
                data=self.subject.name,
                **self._settings,
            )
        )
        self.judge.begin(None)
        row = {"cpu": known + cpu, "clock": clock, "work": work, "loss": cells(found)}
        seen = [self.judge.seen[value] for value in [found.baseline, *row["loss"]]]
        values.unlink()
        figures.unlink()
        return row | {key: [one[key] for one in seen[1:]] for key in seen[0]}

    def estimated(self, count: int, *, slopes: bool = False) -> Row:
        """Predict from distances of so many samples, and from slopes on all of the images."""
        data = Calibration(calibration(self.images[1], count).batches)
        more = {"labelled": with_loss(self.images[0])} if slopes else {}
        with self._autocast():
            found, cpu, clock = timed(lambda: self._estimate(data, **more))
        work = self.work.estimate(count, PROBES, slopes=slopes)
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

        with self._autocast():
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
            with self._autocast():
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

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.subject.bf16)

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
        for name, curve in sorted(found.values.items())
        for ratio, value in zip(found.ratios, curve, strict=True)
        if removed(ratio, found.channels[name])
    ]


def calibration(batches: Sequence[Batch], count: int) -> Calibration:
    """Take the first samples of some batches, with the loss that their labels give."""
    images, labels = (torch.cat(part)[:count] for part in zip(*batches, strict=True))
    size = min(count, 64)
    return with_loss(list(zip(images.split(size), labels.split(size), strict=True)))


def with_loss(batches: Sequence[Batch]) -> Calibration:
    """Return samples with the cross-entropy that their labels give."""
    return Calibration(
        [((images,), {}) for images, _ in batches],
        lambda outputs, index: F.cross_entropy(outputs.float(), batches[index][1]),
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
    if not options.resume:
        for unfinished in options.out.parent.glob(f"{options.out.name}.*.*.*s"):
            unfinished.unlink()
    rows = record.read(options.out) if options.resume else []
    for key in options.names or SUBJECTS:
        subject = SUBJECTS[key]
        analysis = Analysis(subject, options.out.with_name(f"{options.out.name}.{key}"))
        print(subject.name, flush=True)
        before = None
        for name, way in analysis.ways():
            if any((row["network"], row["way"]) == (subject.name, name) for row in rows):
                continue
            before = before or analysis.one()
            row = {"network": subject.name, "way": name, **analysis.head, **way()}
            after = analysis.one()
            rows.append(row | {"one": (before + after) / 2})
            before = after
            print(f"  {name}: {row['cpu']:.0f} s of CPU, {row['work']:.1f} evaluations", flush=True)
            record.write(rows, options.out, table.PACKAGES, table.page)
    record.write(rows, options.out, table.PACKAGES, table.page)
    return int(not all(map(table.same, table.networks(rows).values())))


if __name__ == "__main__":
    sys.exit(main())
