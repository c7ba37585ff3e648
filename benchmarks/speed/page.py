"""The table for people, and what the rows say together."""

from collections.abc import Iterable
from statistics import median

from benchmarks import record, speed
from benchmarks.record import Row
from benchmarks.speed.case import LATENCY, MACS

PACKAGES = ("prunella", "torch", "torchvision", "onnxruntime", "openvino")

_NEAR = 0.95  # of the speed-up that was asked


def page(rows: list[Row]) -> str:
    """Write all rows."""
    good = [row for row in rows if "failure" not in row]
    lines = [
        "# Real speed: asked and got",
        "",
        f"`python -m benchmarks.speed asked` with {', '.join(record.versions(PACKAGES))}.",
        "",
        (speed.__doc__ or "").partition("asked\n\n")[2].strip(),
        "",
        *_together(good),
        "",
        *_by_network(good),
        "",
        *_table(good),
    ]
    failed = [row for row in rows if "failure" in row]
    if failed:
        lines += ["", "## Failed", ""]
        lines += [f"- {_name(row)}, asked {row['asked']}x: {row['failure']}" for row in failed]
    return "\n".join(lines) + "\n"


def _together(rows: list[Row]) -> Iterable[str]:
    timed = [row for row in rows if row["budget"] == LATENCY]
    if not timed:
        return
    near = sum(row["got"] >= _NEAR * row["asked"] for row in timed)
    yield f"- Got at least 95% of the speed-up that was asked: {near} of {len(timed)}."
    missed = median(abs(row["missed"]) for row in rows)
    yield (
        f"- Latency models: median error {median(r['model_error'] for r in timed):.1%} on held-out "
        f"plans, {missed:.1%} for the speed-ups of the plans below."
    )
    for budget in (MACS, LATENCY):
        shares = [row["ideal"] for row in rows if row["budget"] == budget]
        if shares:
            yield (
                f"- Measured speed-up over the reduction of MACs, budget on {budget}: "
                f"{median(shares):.2f} in the median, {min(shares):.2f} at least."
            )


def _by_network(rows: list[Row]) -> Iterable[str]:
    """Show the share of the ideal that each budget reaches, in the median over settings."""
    yield "| network | settings | got / MACs, budget on MACs | got / MACs, budget on latency |"
    yield "|---|--:|--:|--:|"
    for network in dict.fromkeys(row["network"] for row in rows):
        mine = [row for row in rows if row["network"] == network]
        shares = {
            budget: [row["ideal"] for row in mine if row["budget"] == budget]
            for budget in (MACS, LATENCY)
        }
        cells = [f"{median(found):.2f}" if found else "" for found in shares.values()]
        yield f"| {network} | {len(shares[LATENCY])} | {' | '.join(cells)} |"


def _table(rows: list[Row]) -> Iterable[str]:
    yield (
        "| network | runtime | threads | batch | budget on | asked | got | interval | predicted | "
        "MACs | got / MACs | dense ms | pruned ms | tries | model error |"
    )
    yield "|---|---|--:|--:|---|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|"
    for row in rows:
        error = f"{row['model_error']:.1%}" if "model_error" in row else ""
        yield (
            f"| {row['network']} | {row['runtime']} | {row['threads']} | {row['batch']} | "
            f"{row['budget']} | {row['asked']}x | {row['got']:.2f}x | {row['low']:.2f} to "
            f"{row['high']:.2f} | {row['predicted']:.2f}x | {row['macs']:.2f}x | "
            f"{row['ideal']:.2f} | {row['dense_ms']:.4g} | {row['pruned_ms']:.4g} | "
            f"{row['tries'] or ''} | {error} |"
        )


def _name(row: Row) -> str:
    return f"{row['network']}, {row['runtime']}, {row['threads']} threads, batch {row['batch']}"
