"""Which criterion chooses best: six trained networks, cut once by each criterion, not repaired.

    PRUNELLA_DATA=../shared/data python -m benchmarks.criteria [--resume] [networks...]

Every group loses the same share of its channels, so that all that differs is which; 10% and 30% of
the MACs go. No finetuning, no repair, no batch-norm recalibration.

None of it is test data. ResNets are judged by 1000 training images of CIFAR-10 (which they were
trained on: read the differences, not the heights), EfficientNet-Lite0 and SqueezeNet by 125 of the
even pictures of the ImageNet sample, ESPNet by 25 pictures of CamVid's validation split, MiniLM by
every third pair of STS-B's. What criteria look at are others of the same, without labels: 512 and
128 images, 32 pictures, every twelfth pair. Evaluation in bfloat16.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

import prunella
from benchmarks.real_models import classifiers, data, segmenter, sentences
from prunella.calibration import Calibration, calibration
from prunella.scoring.criteria import CRITERIA
from prunella.tasks import load

SHARES = (0.9, 0.7)
OUT = Path("benchmarks") / "results" / "criteria"
Judge = Callable[[nn.Module], float]
Parts = tuple[nn.Module, tuple[Tensor, ...], Judge, Calibration]
"""A network, an example, what judges it, in points of 100, and data for criteria."""


@dataclass(frozen=True)
class Subject:
    """A network by name, and how to make its parts."""

    name: str
    parts: Callable[[], Parts]


def _run(model: nn.Module, inputs: list[tuple[Tensor, ...]]) -> list[Tensor]:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        return [model(*batch).float() for batch in inputs]


def _accuracy(batches: list[tuple[Tensor, Tensor]]) -> Judge:
    labels = torch.cat([found for _, found in batches])
    inputs = [(images.contiguous(memory_format=torch.channels_last),) for images, _ in batches]

    def judge(model: nn.Module) -> float:
        right = torch.cat(_run(model, inputs)).argmax(1) == labels
        return 100 * float(right.double().mean())

    return judge


def _resnet(depth: int) -> Parts:
    task = load("cifar10", depth=depth, limit=1512, held_out="train")
    found = list(task.data("valid"))
    images, labels = (torch.cat(part) for part in zip(*found, strict=True))
    judged = list(zip(images[:1000].split(250), labels[:1000].split(250), strict=True))
    return (
        task.model().eval(),
        (images[:1],),
        _accuracy(judged),
        calibration(list(images[1000:1512].split(64))),
    )


def _imagenet(subject: Any, prepare: Callable[[np.ndarray], Tensor]) -> Parts:
    pictures = classifiers._pictures()
    judged, seen = np.arange(0, 1000, 8), np.arange(2, 1000, 8)[:128]
    batches = [
        (prepare(pictures[part]), torch.from_numpy(part)) for part in np.array_split(judged, 5)
    ]
    data_seen = calibration([prepare(pictures[part]) for part in np.array_split(seen, 8)])
    return subject.build(), subject.example(), _accuracy(batches), data_seen


def _espnet() -> Parts:
    pictures, masks = segmenter._split("val")
    prepare = segmenter._prepare
    inputs = [(prepare(pictures[i : i + 5]),) for i in range(0, 25, 5)]

    def judge(model: nn.Module) -> float:
        pairs = zip(_run(model, inputs), np.array_split(masks[:25], 5), strict=True)
        return segmenter._score(pairs)["mIoU"]

    seen = calibration([prepare(pictures[i : i + 2]) for i in range(60, 92, 2)])
    return segmenter.ESPNET.build(), segmenter.ESPNET.example(), judge, seen


def _minilm() -> Parts:
    left, right, wanted = (part[::3] for part in data.loaders().stsb("dev"))
    batches = list(sentences._batches(sorted({*left, *right})))

    def judge(model: nn.Module) -> float:
        rows = torch.cat(_run(model, [inputs for inputs, _ in batches]))
        known = dict(zip([s for _, part in batches for s in part], rows, strict=True))
        cosines = F.cosine_similarity(
            torch.stack([known[s] for s in left]), torch.stack([known[s] for s in right])
        )
        return 100 * float(spearmanr(cosines.numpy(), wanted).statistic)

    one, other, _ = (part[1::12] for part in data.loaders().stsb("dev"))
    seen = sentences._batches(sorted({*one, *other}))
    subject = sentences.MINILM
    return subject.build(), subject.example(), judge, Calibration([(i, {}) for i, _ in seen])


SUBJECTS = {
    "resnet20": Subject("ResNet-20", lambda: _resnet(20)),
    "resnet56": Subject("ResNet-56", lambda: _resnet(56)),
    "lite0": Subject(
        "EfficientNet-Lite0",
        lambda: _imagenet(classifiers.EFFICIENTNET_LITE0, classifiers._lite),
    ),
    "squeezenet": Subject(
        "SqueezeNet",
        lambda: _imagenet(classifiers.SQUEEZENET, classifiers._squeeze),
    ),
    "espnet": Subject("ESPNet", _espnet),
    "minilm": Subject("MiniLM", _minilm),
}


def measure(subject: Subject, found: dict[str, list[float]]) -> Iterator[str]:
    """Add what is left of the quality, by criterion, at each share of the MACs; yield each name."""
    model, example, judge, seen = subject.parts()
    groups = prunella.couple(prunella.trace(model, example))
    if "dense" not in found:
        found["dense"] = [judge(model)]
    for name in CRITERIA:
        if name not in found:
            scores = prunella.score(model, groups, name, seen)
            plans = [prunella.allocate(groups, scores, prunella.Budget(macs=s)) for s in SHARES]
            found[name] = [judge(prunella.transform(model, p, certify=False)) for p in plans]
            print(f"{subject.name:20}{name:14}", *(f"{v:7.2f}" for v in found[name]), flush=True)
            yield name


def page(rows: dict[str, dict[str, list[float]]]) -> str:
    """Write the table: a row for each criterion, a column for each network."""
    names = [SUBJECTS[key].name for key in rows]
    lines = ["| criterion | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for criterion in ("dense", *CRITERIA):
        cells = [
            " / ".join(f"{value:.1f}" for value in found[criterion]) if criterion in found else ""
            for found in rows.values()
        ]
        lines.append(f"| {criterion} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure the networks that are named, or all; write JSON and the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.criteria",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", help=f"only these of: {', '.join(SUBJECTS)}")
    parser.add_argument("--resume", action="store_true", help="keep what was measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = OUT.with_suffix(".json")
    rows = json.loads(path.read_text()) if options.resume and path.exists() else {}
    for key in options.names or SUBJECTS:
        found = rows.setdefault(key, {})
        rows = {key: rows[key] for key in SUBJECTS if key in rows}
        for _ in measure(SUBJECTS[key], found):
            path.write_text(json.dumps(rows, indent=1) + "\n")
            OUT.with_suffix(".md").write_text(page(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
