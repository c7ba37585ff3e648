"""A trained network on real images: what a budget in time is worth in accuracy.

    PRUNELLA_DATA=../shared/data python -m benchmarks.speed.cifar [--resume]

Protocol:

- Pretrained ResNet-56 on CIFAR-10, 2,048 unlabelled calibration images (see
  `benchmarks.accuracy`), ONNX Runtime, one thread. Test accuracy in bf16, without finetuning.
- *MACs*: Prunella, a budget on MACs.
- *latency*: Prunella, a budget of the time that the MACs plan takes, as measured: what is worth
  more at equal time? Where the MACs plan is no faster than the dense network, that network.
- *finetuned*: accuracy of these two after 5 epochs of the training that `benchmarks.accuracy short`
  gives every method, distilled.
- *both*: Prunella, the budget on MACs and 1/1.2 of the time that Torch-Pruning's network takes.
- *Torch-Pruning* 1.6.1: its recipe's setting (group L2, global), on all channels and inside
  blocks alone, to the same budget on MACs.
- All networks of a budget are timed in turns with the dense one; the median over turns counts.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

import prunella
from benchmarks import record
from benchmarks.accuracy import peer
from benchmarks.accuracy.case import Case, Method, accuracy, case, joined, problem
from benchmarks.accuracy.training import EPOCHS, Training, trained
from benchmarks.record import Row
from prunella.calibration import Calibration, calibration
from prunella.costs.latency import compare, speedup
from prunella.latency import LatencyModel, profile
from prunella.repairing.reconstructing import reconstruct
from prunella.runtimes import Runtime, prepare
from prunella.sensitivity.valuing import value

PACKAGES = ("prunella", "torch", "onnxruntime", "torch-pruning")
NETWORK, IMAGES = "ResNet-56", 2048
SECONDS = 15.0
FASTER = 1.2
MACS, LATENCY = COMPARED = ("MACs", "latency")
PEERS = ("group L2, global, all", "group L2, global, inside")


@dataclass(frozen=True)
class Trial:
    """The network, its images and the runtime.

    Attributes:
        case: The network and its calibration images.
        batch: Images of one forward that is timed.
        runtime: Where it runs.
    """

    case: Case
    batch: int
    runtime: Runtime

    @property
    def inputs(self) -> Tensor:
        """Return what is timed."""
        return self.case.images[: self.batch]

    @cached_property
    def data(self) -> Calibration:
        """Return the calibration images."""
        return calibration(self.case.batches())

    @cached_property
    def groups(self) -> prunella.Groups:
        """Trace the network on what is timed."""
        return prunella.couple(prunella.trace(self.case.dense, self.inputs))

    @cached_property
    def damage(self) -> prunella.allocating.Damage:
        """Measure once what every group is worth."""
        dense, groups = self.case.dense, self.groups
        found = reconstruct(dense, groups, prunella.score(dense, groups), self.data)
        return value(dense, groups, found, self.data).damage

    @cached_property
    def model(self) -> LatencyModel:
        """Measure how long which widths take."""
        return profile(self.case.dense, self.inputs, self.groups, self.runtime)

    @cached_property
    def test(self) -> tuple[Tensor, Tensor]:
        """Return the test images and labels."""
        return joined(problem(NETWORK).data("test"))

    def prune(self, **budgets: float | str) -> nn.Module:
        """Prune with all that a user gets."""
        timed = {"runtime": self.runtime, "latency_model": self.model}
        return prunella.prune(
            self.case.dense,
            self.inputs,
            calibration=self.data,
            damage=self.damage,
            **budgets,
            **(timed if "latency" in budgets else {}),
        ).model

    def times(self, models: dict[str, nn.Module]) -> dict[str, float]:
        """Return how many times faster than the dense network each is."""
        everything = {"dense": self.case.dense, **models}
        ready = {
            name: prepare(m, self.inputs, runtime=self.runtime) for name, m in everything.items()
        }
        try:
            found = compare(ready, seconds=SECONDS)
        finally:
            for one in ready.values():
                one.close()
        return {name: speedup(found["dense"], found[name]).ratio for name in models}

    def finetuned(self, name: str, model: nn.Module, removed: int, epochs: int) -> float:
        """Train for a few epochs, and return the accuracy."""
        named = f"{self.runtime}, batch {self.batch}, {name}"
        way = Method("speed", named, lambda _: iter(()), training=Training(epochs))
        found, _ = trained(self.case, model, way, removed)
        return accuracy(found, *self.test)

    def rows(self, removed: int, epochs: int) -> Iterator[Row]:
        """Prune to a budget in every way."""
        share = self.case.share(removed)
        models = {MACS: self.prune(macs=share)}
        alone = replace(self.case, budgets=(removed,))
        ways = {method.setting: method for method in peer.methods()}
        for name in PEERS:
            models[f"{peer.TOOL}: {name}"] = next(iter(ways[name].run(alone)))[1]
        first = self.times(models)
        quickest = max(first[name] for name in models if name.startswith(peer.TOOL))
        slower = first[MACS] <= 1
        models[LATENCY] = self.case.dense if slower else self.prune(latency=1 / first[MACS])
        try:
            models["both"] = self.prune(macs=share, latency=1 / (quickest * FASTER))
        except prunella.PrunellaError as error:
            print(f"both: {error}", file=sys.stderr)
        faster = self.times(models)
        dense = prunella.count_macs(self.case.dense, self.case.example)
        for name, model in models.items():
            row: Row = {
                "network": NETWORK,
                "batch": self.batch,
                "runtime": str(self.runtime),
                "removed": removed,
                "plan": name,
                "macs": prunella.count_macs(model, self.case.example) / dense,
                "faster": round(faster[name], 3),
                "accuracy": accuracy(model, *self.test),
            }
            if epochs and name in COMPARED:
                row |= {"epochs": epochs, "finetuned": self.finetuned(name, model, removed, epochs)}
            yield row


def page(rows: list[Row]) -> str:
    """Write the Markdown page."""
    lines = [
        "# Accuracy at equal time, time at equal MACs",
        "",
        f"`python -m benchmarks.speed.cifar` with {', '.join(record.versions(PACKAGES))}.",
        "",
        "Protocol:" + (__doc__ or "").partition("Protocol:")[2].rstrip(),
        "",
        "| network | runtime | batch | MACs to remove | plan | MACs left | faster | accuracy | "
        "finetuned |",
        "| --- | --- | --: | --: | --- | --: | --: | --: | --: |",
    ]
    lines += [
        f"| {r['network']} | {r['runtime']} | {r['batch']} | {r['removed']}% | {r['plan']} | "
        f"{r['macs']:.1%} | {r['faster']:.2f}x | {r['accuracy']:.2f} | "
        + (f"{r['finetuned']:.2f} |" if "finetuned" in r else "|")
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.cifar",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--removed", nargs="+", type=int, default=[30, 50])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=EPOCHS[NETWORK], help="0: no finetuning")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed-cifar"))
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = record.read(options.out) if options.resume else []
    known = case(NETWORK, 0, options.images, options.removed)
    for batch in options.batches:
        trial = Trial(known, batch, Runtime("onnxruntime", threads=options.threads))
        for removed in options.removed:
            if any(row["batch"] == batch and row["removed"] == removed for row in rows):
                continue
            for row in trial.rows(removed, options.epochs):
                rows.append(row)
                print(row, flush=True)
            record.write(rows, options.out, PACKAGES, page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
