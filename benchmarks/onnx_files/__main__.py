"""Export ResNet-20 and ResNet-56, prune the files, and test them in ONNX Runtime.

Test images are used once, after everything is decided. Calibration images have no labels: they are
from the 5,000 that the task `cifar10` holds out of training.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

import prunella
from benchmarks import record
from prunella.tasks import Task, cifar10

OUT = Path(__file__).resolve().parents[1] / "results" / "onnx-files"
PACKAGES = ("prunella", "torch", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Row:
    """One file, pruned once."""

    network: str
    budget: str
    images: int
    dense: float
    pruned: float
    macs_left: float
    params_left: float
    dense_kb: int
    pruned_kb: int
    certificate: float
    parity: float
    seconds: float


def main() -> None:
    """Run all rows, and write them down."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.onnx_files")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = list(_rows(Path(folder), options.images, options.seed))
    record.write([asdict(row) for row in rows], OUT, PACKAGES, _page)
    print(OUT.with_suffix(".md").read_text())


def _rows(folder: Path, images: int, seed: int) -> Iterator[Row]:
    for depth in (20, 56):
        task = cifar10.task(depth=depth, held_out="train")
        dense = folder / f"resnet{depth}.onnx"
        _export(task.model(), dense)
        data = folder / f"resnet{depth}.npz"
        np.savez(data, images=_some(task, images, seed))
        before = _accuracy(task, dense)
        for budget, calibration in (("70%", data), ("50%", data), ("70%", None)):
            output = folder / "pruned.onnx"
            start = time.perf_counter()
            made = prunella.prune_onnx(dense, output, calibration, macs=budget, seed=seed)
            seconds = time.perf_counter() - start
            costs = made.plan.before, made.plan.after
            yield Row(
                f"ResNet-{depth}",
                budget,
                images if calibration else 0,
                before,
                _accuracy(task, output),
                costs[1].macs / costs[0].macs,
                costs[1].params / costs[0].params,
                dense.stat().st_size // 1024,
                output.stat().st_size // 1024,
                made.certificate.error,
                made.parity or 0.0,
                seconds,
            )


def _export(model: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of this exporter being the old one: most files are its
        torch.onnx.export(
            model.eval(),
            (torch.zeros(1, 3, 32, 32),),
            path,
            dynamo=False,
            input_names=["images"],
            output_names=["scores"],
            dynamic_axes={"images": {0: "batch"}, "scores": {0: "batch"}},
        )


def _some(task: Task, count: int, seed: int) -> np.ndarray:
    images = torch.cat([batch[0] for batch in task.data("valid")])
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    return images[chosen].numpy()


def _accuracy(task: Task, path: Path) -> float:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    right = seen = 0
    for images, labels in task.data("test"):
        scores = session.run(None, {"images": images.numpy()})[0]
        right += int((scores.argmax(1) == labels.numpy()).sum())
        seen += len(labels)
    return right / seen


def _page(rows: list[record.Row]) -> str:
    lines = [
        "# ONNX files, pruned without training code",
        "",
        f"`python -m benchmarks.onnx_files` with {', '.join(record.versions(PACKAGES))}.",
        "",
        "Pretrained ResNets for CIFAR-10, exported to ONNX (batch norms folded by the exporter),",
        "and pruned as files: `prunella prune model.onnx --calibration data.npz --macs 70%`. No",
        "training, no labels. Accuracy on the 10,000 test images, in ONNX Runtime; one seed.",
        "*Proof*: largest relative difference between pruned and masked network, in float64.",
        "*Parity*: the same between ONNX Runtime on the written file and that network. Seconds: by",
        "the clock, one thread of a busy machine.",
        "",
        "| network | MACs may remain | images | dense | pruned | MACs left | parameters left |"
        " file | proof | parity | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for found in rows:
        r = Row(**found)
        lines.append(
            f"| {r.network} | {r.budget} | {r.images or 'none'} | {r.dense:.2%} | {r.pruned:.2%} | "
            f"{r.macs_left:.1%} | {r.params_left:.1%} | {r.dense_kb} -> {r.pruned_kb} kB | "
            f"{r.certificate:.1e} | {r.parity:.1e} | {r.seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
