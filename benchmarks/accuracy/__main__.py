"""Run every method in a process of its own and write the results after each row."""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import accuracy, record
from benchmarks.accuracy import ours, parts, peer, reference, rows, training
from benchmarks.accuracy.case import DEPTHS, Case, Method, Pruned, case
from benchmarks.accuracy.page import page
from benchmarks.accuracy.rows import MARGIN, PACKAGES, SCREEN
from benchmarks.accuracy.running import listen, measure, settle, spoken, worker
from benchmarks.record import Row

BUDGETS = {
    "no-finetune": (10, 20, 30, 40, 50, 60),
    "short": (50, 60, 75),
    "ablation": (10, 20, 30, 40, 50, 60),
    "recipes": (75,),
    "rounds": (75, 90),
    "long": (47, 61),
}


def _unpruned(case: Case) -> Iterator[Pruned]:
    yield 0, case.dense


DENSE = Method("dense", "", _unpruned, recalibrates=False)


def methods(network: str, options: argparse.Namespace) -> list[Method]:
    """List the methods that a command compares on a network."""
    if options.command == "short":
        before = record.read(options.before)
        return training.methods(network, before, options.epochs, options.limit)
    if options.command == "recipes":
        return training.recipes(network, options.epochs, options.limit)
    if options.command == "rounds":
        return training.rounds(network, options.epochs, options.limit)
    if options.command == "long":
        return training.long(network, options.epochs, options.limit)
    if options.command == "ablation":
        return parts.methods()
    return [*ours.methods(), *reference.methods(), *peer.methods()]


@dataclass(frozen=True)
class Job:
    """What one process does."""

    network: str
    seed: int
    method: Method
    points: dict[rows.Point, bool]


def jobs(done: list[Row], options: argparse.Namespace) -> Iterator[Job]:
    """Yield what is still to do; `done` grows meanwhile."""
    chosen = {
        network: [m for m in methods(network, options) if _chosen(m, options.only)]
        for network in options.networks
    }
    chosen = {network: ways for network, ways in chosen.items() if ways}
    budgets = options.budgets or BUDGETS[options.command]
    for network in chosen:
        if points := rows.due(done, DENSE, (network, 0), [0], screening=False):
            yield Job(network, 0, DENSE, points)
    for seed in options.seeds:
        for network in chosen:
            for screening in (True, False)[seed > 0 :]:
                for method in chosen[network]:
                    place = (network, seed)
                    points = rows.due(done, method, place, budgets, screening=screening)
                    if points and (method.screened or not screening):
                        yield Job(network, seed, method, points)


def _chosen(method: Method, only: list[str]) -> bool:
    return not only or any(re.search(text, _name(method)) for text in only)


def _name(method: Method) -> str:
    return ": ".join(filter(None, (method.tool, method.setting, str(method.training or ""))))


def work(options: argparse.Namespace) -> None:
    """Be the process of one job."""
    job: dict[str, Any] = json.loads(options.worker)
    settle(job["seed"])
    known = [DENSE, *methods(job["network"], options)]
    method = next(m for m in known if _name(m) == job["method"])
    points = {(removed, bn): test for removed, bn, test in job["points"]}
    found = case(job["network"], job["seed"], options.images, {removed for removed, _ in points})
    for row in measure(found, method, points):
        spoken(row)


def run(options: argparse.Namespace) -> int:
    """Do every job that is due; the exit code is 1 if a row of ours failed."""
    done = record.read(options.out) if options.resume else []
    networks = list(DEPTHS)
    order = [DENSE, *(m for network in networks for m in methods(network, options))]
    places = {_name(method): i for i, method in enumerate(order)}

    def keep(row: Row) -> None:
        done[:] = sorted(
            rows.merged(done, row),
            key=lambda r: (
                networks.index(r["network"]),
                places.get(": ".join(filter(None, map(r.get, rows.NAME))), len(places)),
                *(r["bn"], r["removed"], r["seed"]),
            ),
        )
        record.write(done, options.out, PACKAGES, partial(page, command=options.command))

    for job in jobs(done, options):
        print(f"{job.network}, {_name(job.method)}, seed {job.seed}", flush=True)
        left = dict(job.points)
        said = {
            "network": job.network,
            "seed": job.seed,
            "method": _name(job.method),
            "points": [[*point, test] for point, test in left.items()],
        }
        command = worker(*options.same, "--worker", json.dumps(said))
        try:
            for row in listen(command, options.seconds):
                left.pop((row["removed"], row["bn"]))
                keep(row)
                print(
                    f"  {row['removed']}% bn={row['bn']}: {row.get('accuracy', 'screened')}",
                    flush=True,
                )
        except RuntimeError as cause:
            print(f"  FAILED: {cause}", flush=True)
            for removed, bn in left:
                named_row: Row = {"network": job.network, "tool": job.method.tool}
                named_row |= {"setting": job.method.setting, **rows.trained(job.method), "bn": bn}
                keep({**named_row, "removed": removed, "seed": job.seed, "failure": str(cause)})
    failed = [row for row in done if "failure" in row and row["tool"] != peer.TOOL]
    return int(bool(failed))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description=(accuracy.__doc__ or "").format(margin=f"{MARGIN:g}", screen=SCREEN),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=BUDGETS)
    parser.add_argument("--networks", nargs="+", choices=DEPTHS, default=list(DEPTHS))
    parser.add_argument(
        "--only", nargs="+", default=[], help="methods whose name matches such a pattern"
    )
    parser.add_argument("--budgets", nargs="+", type=int, help="percents of the MACs to remove")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=2048, help="calibration images")
    parser.add_argument("--out", type=Path, help="result, without its ending")
    parser.add_argument(
        "--seconds", type=int, help="time limit of a method; two hours, `long` a day"
    )
    parser.add_argument("--resume", action="store_true", help="keep the rows --out has, but failed")
    parser.add_argument("--epochs", type=int, help="of finetuning, in place of the protocol's")
    parser.add_argument("--limit", type=int, help="training images of these, to try the program")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    results = Path("benchmarks") / "results"
    options.out = options.out or results / f"accuracy-{options.command}"
    options.seconds = options.seconds or (86_400 if options.command == "long" else 7200)
    options.before = results / "accuracy-no-finetune"
    options.same = [options.command, "--images", options.images]  # what a worker must be told
    for name in ("epochs", "limit"):
        options.same += [f"--{name}", getattr(options, name)] if getattr(options, name) else []
    return options


def main() -> int:
    """Run the benchmark."""
    options = _arguments()
    if options.worker:
        work(options)
        return 0
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
