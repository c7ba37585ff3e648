"""Tables for stdout: Baseline / Compressed / Delta, and what `stat` lists."""

from collections.abc import Mapping

from rich import box
from rich.table import Table

from prunella.pipeline import Suggestion
from prunella.pipeline.exporting import HandedOver
from prunella.pipeline.suggesting import Forecast
from prunella.record import RunRecord
from prunella.report.wording import count, difference, headline_rows, measure, percent


def summary(record: RunRecord) -> Table:
    """Set the dense and the pruned model side by side."""
    table = _table("", "Baseline", "Compressed", "Delta")
    for row in headline_rows(record):
        # Of a time the difference is in words, which know about noise; a share of medians does not.
        left = "" if row.left is None or row.good is None else f" ({percent(row.left)} left)"
        table.add_row(row.name, row.baseline, row.compressed, row.delta + left)
    return table


def sensitivity(record: RunRecord) -> Table:
    """List how far the metric moves with a share of one group removed, and all others whole."""
    found = record.sensitivity
    ratios = found.ratios if found is not None else ()
    table = _table("group", "channels", *(f"{100 * ratio:g}% gone" for ratio in ratios))
    if found is not None:
        for name, curve in found.curves.items():
            changes = (_change(value, found.baseline) for value in curve)
            table.add_row(name, f"{found.channels[name]:,}", *changes)
        table.caption = f"change of the {found.metric} with this group alone pruned"
        table.caption_justify = "left"
    return table


def _change(value: float | None, before: float) -> str:
    return "no number" if value is None else difference(value, before)


def groups(record: RunRecord) -> Table:
    """List the groups that may be cut, and what they keep."""
    table = _table("group", "channels", "kept", "share kept")
    for group in record.groups:
        table.add_row(
            group.name,
            f"{group.channels:,}",
            f"{group.kept:,}",
            percent(group.kept / group.channels),
        )
    return table


def frozen(record: RunRecord) -> Table:
    """List the groups that may not be cut, and why."""
    table = _table("frozen group", "channels", "reason")
    table.columns[-1].justify = "left"
    for group in record.frozen:
        table.add_row(group.name, f"{group.channels:,}", "; ".join(group.reasons))
    return table


def forecasts(found: Suggestion) -> Table:
    """List budgets and what they are predicted to cost."""
    timed = any(row.latency is not None for row in found.rows)
    time = ["latency, predicted"] if timed else []
    predicted = f"{found.metric}, predicted"
    table = _table("budget", "MACs left", "params left", *time, predicted, "delta", "")
    table.columns[-1].justify = "left"
    whole = ["100.0%"] * (3 if timed else 2)
    table.add_row("none", *whole, measure(found.baseline), "", "dense, measured")
    for row in found.rows:
        marks = [*(["knee"] if row.knee else []), *(["your budget"] if row.asked else [])]
        table.add_row(
            ", ".join(f"{name} {percent(share)}" for name, share in row.budget.items()),
            percent(row.left["macs"]),
            percent(row.left["params"]),
            *([f"{measure(row.latency)} ms, {percent(row.left['latency'])}"] if timed else []),
            measure(row.metric),
            difference(row.metric, found.baseline),
            ", ".join(marks),
        )
    return table


def kept(row: Forecast) -> Table:
    """List what a plan keeps of every group."""
    table = _table("group", "channels", "kept", "share kept")
    for name, channels, left in row.groups:
        table.add_row(name, f"{channels:,}", f"{left:,}", percent(left / channels))
    return table


def handed_over(found: HandedOver) -> Table:
    """Set the dense model, the pruned one and int8 side by side, as files in their runtime."""
    runtime = found.timing.runtime
    table = _table("", "MB", f"latency in {runtime.name}", "against dense", found.metric)
    table.columns[3].justify = "left"
    sizes = {"dense": found.dense_size, "pruned": found.exported.size}
    judged: dict[str, float] = {}
    if found.quantized is not None:
        sizes["pruned, int8"] = found.quantized.exported.size
        judged = {"pruned": found.quantized.before, "pruned, int8": found.quantized.after}
    for name, latency in found.timing.latency.items():
        table.add_row(
            name,
            f"{sizes[name] / 1e6:.2f}",
            str(latency),
            "" if name == "dense" else str(found.timing.speedup(name)),
            measure(judged[name]) if name in judged else "",
        )
    return table


def layers(macs: Mapping[str, int]) -> Table:
    """List the modules by the multiply-accumulates they cost, dearest first."""
    table = _table("module", "MACs", "share")
    whole = sum(macs.values()) or 1
    for name, found in sorted(macs.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(name or "the model itself", count(found), percent(found / whole))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=index == 0)
    return table
