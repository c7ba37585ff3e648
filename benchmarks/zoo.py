"""Prune every network of a collection, prove each result, and write down what it took.

    python -m benchmarks.zoo torchvision-cnn
    python -m benchmarks.zoo torchvision-cnn resnet18 vgg16_bn --size 64 --out zoo

Every network runs in a process of its own with a time and a memory limit; what fails is a row with
its error. Weights are random: a proof of equality needs none, and batch-norm statistics, affines
and biases that differ from channel to channel hide no fault.
"""

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import prunella

FAMILIES = (
    "alexnet vgg resnet resnext wide_resnet densenet googlenet inception squeezenet mobilenet "
    "mnasnet shufflenet efficientnet regnet"
).split()
"""Prefixes of the names of torchvision's convolutional classifiers."""

STAGES = ("trace", "couple", "score", "allocate", "transform", "certify")
HEAVY, SMALL = 4.0, 96
"""Networks of more GMACs than this at their usual size are run on images of this side at most."""

LEAST = {"inception_v3": 75, "alexnet": 63}
"""Networks that do not run on smaller images."""

SAMPLES = 2


def names() -> list[str]:
    """List torchvision's convolutional classifiers, smallest first."""
    found = torchvision.models.list_models(module=torchvision.models)
    kept = [name for name in found if name.startswith(tuple(FAMILIES))]
    return sorted(kept, key=lambda name: (_size(name), name))


def _size(name: str) -> int:
    """Look up the number of parameters, which torchvision tells without building the network."""
    weights = next(iter(torchvision.models.get_model_weights(name)))
    return int(weights.meta["num_params"])


def _ops(name: str) -> float:
    """Look up the GMACs at the size the network was made for."""
    weights = next(iter(torchvision.models.get_model_weights(name)))
    return float(weights.meta["_ops"])


def build(name: str, size: int) -> tuple[nn.Module, Tensor]:
    """Build a network that passes a signal on and whose every tensor is random.

    Convolutions and linear layers get variance-preserving weights, biases differ; batch-norm
    statistics are measured on random images and then moved at random.
    """
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, **options)
    images = torch.randn(SAMPLES, 3, size, size)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    module.bias.uniform_(-0.1, 0.1)
        momenta = [module.momentum for module in norms]
        for module in norms:
            module.momentum = 1.0
            module.weight.uniform_(0.5, 1.5)
            module.bias.uniform_(-0.5, 0.5)
        model.eval()
        for module in norms:
            module.train()
        model(images)
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum
            spread = module.running_var.sqrt()
            module.running_mean += 0.2 * spread * torch.randn_like(spread)
            module.running_var *= torch.empty_like(spread).uniform_(0.7, 1.4)
            module.running_var += 1e-3
    return model.eval(), images[:1].clone()


def measure(name: str, size: int) -> list[dict[str, Any]]:
    """Prune one network at every kind of ratio; return a row for each."""
    if _ops(name) > HEAVY:
        size = min(size, SMALL)
    size = max(size, LEAST.get(name, 0))
    model, image = build(name, size)
    seconds: dict[str, float] = {}
    with _timed(seconds, "trace"):
        graph = prunella.trace(model, image)
    with _timed(seconds, "couple"):
        groups = prunella.couple(graph)
    with _timed(seconds, "score"):
        scores = prunella.score(model, groups)
    draw = random.Random(name)
    uneven = {group.name: draw.uniform(0.1, 0.9) for group in groups}
    dense = prunella.count_macs(model, image), prunella.count_params(model)
    rows = []
    for ratio, target in {"0.5": 0.5, "uneven": uneven}.items():
        row = _prune(model, image, groups, scores, target, dict(seconds))
        if (row["macs"], row["params"]) != dense:
            raise RuntimeError(f"the dense model's costs are {dense}, not {row['macs']}")
        rows.append({"name": name, "ratio": ratio, "size": size, **row})
    return rows


def _prune(
    model: nn.Module,
    image: Tensor,
    groups: prunella.Groups,
    scores: prunella.Scores,
    target: Any,
    seconds: dict[str, float],
) -> dict[str, Any]:
    with _timed(seconds, "allocate"):
        plan = prunella.allocate(groups, scores, target)
    with _timed(seconds, "transform"):
        pruned = prunella.transform(model, plan, certify=False)
    with _timed(seconds, "certify"):
        proof = prunella.certify(model, pruned, plan, (image,))
    counted = prunella.count_macs(pruned, image), prunella.count_params(pruned)
    if counted != (plan.after.macs, plan.after.params):
        raise RuntimeError(f"predicted {plan.after} but counted {counted}")
    return {
        "error": proof.error,
        "dtype": proof.dtype,
        "macs": plan.before.macs,
        "macs_left": plan.after.macs / plan.before.macs,
        "params": plan.before.params,
        "params_left": plan.after.params / plan.before.params,
        "groups": len(groups),
        "channels": sum(group.channels for group in groups),
        "frozen": len(groups.frozen),
        "signal": _signal(pruned, image),
        "seconds": {stage: round(spent, 3) for stage, spent in seconds.items()},
        "memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - began


def _signal(model: nn.Module, image: Tensor) -> float:
    """Say how much the output depends on the input: 0 would make any proof of equality empty."""
    with torch.no_grad():
        a, b = model(image), model(torch.randn_like(image))
    return float((a - b).abs().max() / a.abs().max())


def run(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure one network in a process of its own, under the limits."""
    command = [sys.executable, "-m", "benchmarks.zoo", options.collection, name, "--worker"]
    command += ["--size", str(options.size), "--memory", str(options.memory)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=options.seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return [_failure(name, f"more than {options.seconds} seconds")]
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return [_failure(name, said[0][:300])]
    rows: list[dict[str, Any]] = json.loads(lines[-1])
    return rows


def _failure(name: str, said: str) -> dict[str, Any]:
    return {"name": name, "ratio": "", "failure": said}


def table(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """Write the Markdown page."""
    failed = [row for row in rows if "failure" in row]
    networks = len({row["name"] for row in rows})
    stages = " | ".join(f"{stage} s" for stage in STAGES)
    lines = [
        f"# {options.collection}: {networks} networks",
        "",
        f"`python -m benchmarks.zoo {options.collection} --size {options.size}` with "
        f"{_versions()}; one thread a process, {options.seconds} s and {options.memory} GB a "
        "network.",
        "",
        "Each network is pruned twice: every group at ratio 0.5, and every group at a random ratio "
        f"of its own between 0.1 and 0.9. Networks of more than {HEAVY:g} GMACs see images of at "
        f"most {SMALL} pixels, which changes no group. Random weights; batch-norm statistics "
        "measured on random images and then moved at random. *error*: largest difference between "
        "the pruned and the masked model's outputs relative to the largest output, the "
        "certificate's. *signal*: how far two random images differ at the pruned model's output, "
        "on the same scale (near 0 the error would prove nothing). *MACs left* and *params left* "
        "are predicted from the plan and were found equal to what is counted on the pruned model "
        "in every row that has no failure. "
        "Seconds were taken beside other work: read them as orders of magnitude.",
        "",
        f"**{len(rows) - len(failed)} of {len(rows)} runs succeeded"
        + (f"; largest error {max(r['error'] for r in rows if 'error' in r):.1e}.**"
           if len(failed) < len(rows) else ".**"),
        "",
        f"| network | image | ratio | error | signal | GMACs | MACs left | params left | groups "
        f"| frozen | {stages} |",
        "| --- " * (10 + len(STAGES)) + "|",
    ]  # fmt: skip
    lines += [_row(row) for row in rows]
    return "\n".join(lines) + "\n"


def _row(row: dict[str, Any]) -> str:
    if "failure" in row:
        cells = [row["name"], "", row["ratio"], f"FAILED: {row['failure']}"]
        return "| " + " | ".join(cells + [""] * (6 + len(STAGES))) + " |"
    cells = [
        row["name"],
        str(row["size"]),
        row["ratio"],
        f"{row['error']:.1e}" + ("" if row["dtype"] == "float64" else f" ({row['dtype']})"),
        f"{row['signal']:.2f}",
        f"{row['macs'] / 1e9:.2f}",
        f"{row['macs_left']:.3f}",
        f"{row['params_left']:.3f}",
        str(row["groups"]),
        str(row["frozen"]),
        *(f"{row['seconds'][stage]:.2f}" for stage in STAGES),
    ]
    return "| " + " | ".join(cells) + " |"


def _versions() -> str:
    python = f"Python {platform.python_version()}"
    return ", ".join([python, *(f"{name} {version(name)}" for name in ("torch", "torchvision"))])


def write(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Write the JSON and the table; after every row, so that a stopped run keeps what it has."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    protocol = {
        "collection": options.collection,
        "size": options.size,
        "seconds": options.seconds,
        "memory_gb": options.memory,
        "versions": _versions(),
    }
    record = json.dumps({"protocol": protocol, "rows": rows}, indent=1)
    for suffix, text in ((".json", record), (".md", table(rows, options))):
        fresh = options.out.with_suffix(suffix + ".new")
        fresh.write_text(text)
        fresh.replace(options.out.with_suffix(suffix))


def _kept(options: argparse.Namespace) -> list[dict[str, Any]]:
    path = options.out.with_suffix(".json")
    if not options.resume or not path.exists():
        return []
    return [row for row in json.loads(path.read_text())["rows"] if "failure" not in row]


COLLECTIONS: dict[str, Callable[[], list[str]]] = {"torchvision-cnn": names}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("collection", choices=sorted(COLLECTIONS))
    parser.add_argument("names", nargs="*", help="only these networks")
    parser.add_argument("--size", type=int, default=224, help="side of the images, pixels")
    parser.add_argument("--seconds", type=int, default=600, help="time limit of one network")
    parser.add_argument("--memory", type=int, default=20, help="memory limit of one network, GB")
    parser.add_argument("--out", type=Path, help="path of the result without its ending")
    parser.add_argument("--resume", action="store_true", help="keep the rows --out has, but failed")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.out is None:
        options.out = Path("benchmarks") / "results" / options.collection
    return options


def main() -> int:
    """Run the benchmark; the exit code is 1 if any network failed."""
    options = _arguments()
    if options.worker:
        limit = options.memory * 10**9
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        torch.set_num_threads(1)
        print(json.dumps(measure(options.names[0], options.size)))
        return 0
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    every = COLLECTIONS[options.collection]()
    unknown = sorted(set(options.names) - set(every))
    if unknown:
        print(f"no such network: {', '.join(unknown)}; there are {', '.join(every)}")
        return 2
    chosen = [name for name in every if not options.names or name in options.names]
    rows = _kept(options)
    for number, name in enumerate(chosen, start=1):
        if any(row["name"] == name for row in rows):
            continue
        for row in run(name, options):
            rows.append(row)
            said = row.get("failure") or f"error {row['error']:.1e}, MACs {row['macs_left']:.3f}"
            print(f"[{number}/{len(chosen)}] {name} {row['ratio']}: {said}", flush=True)
        rows.sort(key=lambda row: every.index(row["name"]))
        write(rows, options)
    failed = sum("failure" in row for row in rows)
    print(f"{len(rows) - failed} of {len(rows)} succeeded; {options.out}.md, {options.out}.json")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
