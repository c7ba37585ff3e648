"""Time every network on every runtime, and write the results after each row."""

import argparse
import sys
import traceback
from pathlib import Path

from benchmarks import record, speed
from benchmarks.record import Row
from benchmarks.speed.case import LATENCY, MACS, NETWORKS, Setting
from benchmarks.speed.page import PACKAGES, page
from prunella.latency import PLANS
from prunella.runtimes import Runtime

KEY = ("network", "runtime", "threads", "batch", "asked")


def main() -> int:
    """Read the command line and do what is still to do."""
    options = _options()
    rows = record.read(options.out) if options.resume else []
    failed = False
    for network in options.networks:
        for runtime in options.runtimes:
            for batch in options.batches:
                text = str(Runtime(runtime, threads=options.threads))
                setting = Setting(network, text, batch, options.plans)
                for asked in options.asked:
                    head = dict(
                        zip(KEY, (network, runtime, options.threads, batch, asked), strict=True)
                    )
                    if not _done(rows, head):
                        failed |= not _measure(setting, head, rows, options.out)
    return int(failed)


def _done(rows: list[Row], head: Row) -> bool:
    alike = [row for row in rows if all(row[name] == head[name] for name in KEY)]
    return {LATENCY, MACS} <= {row.get("budget") for row in alike}


def _measure(setting: Setting, head: Row, rows: list[Row], out: Path) -> bool:
    rows[:] = [row for row in rows if any(row[name] != head[name] for name in KEY)]
    try:
        for row in setting.rows(head["asked"]):
            rows.append(row)
            record.write(rows, out, PACKAGES, page)
            print(row, file=sys.stderr, flush=True)
    except Exception as error:  # noqa: BLE001 - the other rows are worth having
        traceback.print_exc()
        rows.append({**head, "failure": f"{type(error).__name__}: {error}"})
        record.write(rows, out, PACKAGES, page)
        return False
    return True


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=speed.__doc__)
    parser.add_argument("command", choices=["asked"])
    parser.add_argument("--networks", nargs="+", choices=[*NETWORKS], default=[*NETWORKS])
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime", "torch"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--asked", nargs="+", type=float, default=[1.5, 2.0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plans", type=int, default=PLANS, help="of a latency model")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed"))
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
