"""Prune every network of a collection, prove each result, and write down what it took.

    python -m benchmarks.zoo all
    python -m benchmarks.zoo transformers llama mixtral --results somewhere
    python -m benchmarks.zoo torchvision --only-failed --memory 20 --seconds 600

Rows go to RESULTS/<collection>.json after every network, the page for people to docs/coverage.md.
"""

import argparse
import functools
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

# Before torch is imported, and so that children may be forked: no thread pools.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import torch
from torch import nn

import prunella
from benchmarks.zoo import catalogue, measuring, running, writing
from benchmarks.zoo.catalogue import Collection
from benchmarks.zoo.row import Row

RESULTS = Path("benchmarks") / "results"
PAGE = Path("docs") / "coverage.md"


def _arguments() -> argparse.Namespace:
    text, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.zoo",
        description=text,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("collection", choices=["all", *catalogue.COLLECTIONS])
    parser.add_argument("names", nargs="*", help="only these networks")
    parser.add_argument("--seconds", type=int, default=120, help="time limit of a network")
    parser.add_argument("--memory", type=int, default=8, help="memory limit of a network, GB")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--resume", action="store_true", help="leave out networks that have a row")
    parser.add_argument(
        "--only-failed", action="store_true", help="leave out networks that were right throughout"
    )
    return parser.parse_args()


def main() -> int:
    """Run the benchmark; the exit code is 1 if any network failed."""
    options = _arguments()
    torch.set_num_threads(1)
    every = options.collection == "all"
    chosen = catalogue.ALL if every else (catalogue.COLLECTIONS[options.collection],)
    _warm()
    failed = 0
    for collection in chosen:
        known = collection.names()
        unknown = sorted(set(options.names) - set(known))
        if unknown and not every:
            print(f"no such network: {', '.join(unknown)}; there are {', '.join(known)}")
            return 2
        rows = _run(collection, [n for n in known if n in options.names or not options.names],
                    known, options)  # fmt: skip
        failed += sum(row.status != "ok" for row in rows)
        print(f"{collection.name}: {sum(r.status == 'ok' for r in rows)} of {len(rows)} proven")
    return int(failed > 0)


def _run(
    collection: Collection, names: list[str], known: list[str], options: argparse.Namespace
) -> list[Row]:
    rows = {row.name: row for row in writing.read(options.results, collection)}
    if not (options.resume or options.only_failed or options.names):
        rows = {}
    rows = {name: rows[name] for name in known if name in rows}
    if options.resume:
        names = [name for name in names if name not in rows]
    if options.only_failed:
        names = [name for name in names if name not in rows or not rows[name].whole]
    limits = running.Limits(options.seconds, options.memory)
    measure = functools.partial(_measure, collection.build, collection.uneven)
    for number, row in enumerate(running.run(names, measure, limits, options.jobs), start=1):
        rows[row.name] = row
        print(f"[{number}/{len(names)}] {_line(row)}", flush=True)
        writing.write(options.results, collection, [rows[n] for n in known if n in rows])
        _pages(collection, options.results)
    return list(rows.values())


def _measure(
    build: Callable[[str], object], uneven: bool, name: str, say: Callable[[object], None]
) -> None:
    measuring.measure(name, build, say, uneven)


def _pages(collection: Collection, results: Path) -> None:
    """Write the page that shows the collection: beside the results, where they are not ours."""
    if collection in catalogue.ALL:
        page = PAGE if results == RESULTS else results / PAGE.name
        writing.write_page(results, catalogue.ALL, page)
    else:
        writing.write_page(results, (collection,), results / f"{collection.name}.md")


def _line(row: Row) -> str:
    if row.status != "ok":
        return f"{row.name}: {row.status} in {row.stage}: {row.why[:200]}"
    wrong = {check: said[:80] for check, said in row.checks.items() if said != "yes"}
    return (
        f"{row.name}: {row.form}, error {row.error:.1e}, MACs {row.macs_left:.3f}, "
        f"{row.seconds['all']:.1f} s {wrong or ''}"
    )


def _warm() -> None:
    """Import what every network needs, so that the children have it: they are forked from here."""
    for name in ("allocating", "certifying", "pruning", "scoring", "storing"):
        importlib.import_module(f"prunella.{name}")
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    prunella.couple(prunella.trace(model, torch.zeros(1, 3, 4, 4)))


if __name__ == "__main__":
    sys.exit(main())
