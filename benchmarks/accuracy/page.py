"""The page of results: a table for each network, a column for each budget."""

from collections.abc import Iterable
from statistics import mean, stdev

from benchmarks import accuracy
from benchmarks.accuracy.rows import MARGIN, PACKAGES, SCREEN, contends
from benchmarks.record import Row, versions

SAYS = {
    "no-finetune": "Accuracy without finetuning",
    "short": "Accuracy after short finetuning",
    "ablation": "What each part brings, without finetuning",
    "recipes": "What each part of finetuning brings",
    "rounds": "One round or three, with as many epochs in all",
    "long": "Accuracy after long finetuning",
}


def page(rows: list[Row], command: str) -> str:
    """Write the Markdown page."""
    doc = (accuracy.__doc__ or "").format(margin=f"{MARGIN:g}", screen=SCREEN)
    lines = [
        f"# {SAYS[command]}",
        "",
        f"`python -m benchmarks.accuracy {command}` with {', '.join(versions(PACKAGES))}.",
        "",
        "Protocol" + doc.partition("Protocol")[2].strip(),
        "",
        "Top-1 on the test images in percent, mean ± standard deviation over the seeds, where "
        "there are several. *spare*: the most by which a budget was undercut, in points "
        "of the dense network's MACs. An empty cell: not tested, or not measured yet.",
    ]
    for network in dict.fromkeys(row["network"] for row in rows):
        lines += ["", *_section([row for row in rows if row["network"] == network])]
    return "\n".join(lines) + "\n"


def _section(rows: list[Row]) -> list[str]:
    dense = next((row for row in rows if row["tool"] == "dense" and "accuracy" in row), None)
    lines = [f"## {rows[0]['network']}", ""]
    if dense:
        lines += [
            f"{dense['macs'] / 1e6:,.2f} MMACs, {dense['params']:,} parameters; dense "
            f"{dense['accuracy']:.2f} (float32 {dense['accuracy, float32']:.2f}).",
            "",
        ]
    rows = [row for row in rows if row["tool"] != "dense"]
    budgets = sorted({row["removed"] for row in rows})
    extra = ["training"] if any(row.get("training") for row in rows) else []
    columns = ["tool", "setting", "bn", *extra, *(f"-{b}%" for b in budgets)]
    columns += ["spare", "images", "seeds", "seconds"]
    lines += ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for tool in dict.fromkeys(row["tool"] for row in rows):
        mine = [row for row in rows if row["tool"] == tool]
        if len({row["setting"] for row in mine}) > _MANY:
            for bn in (False, True):
                lines += _best([row for row in mine if row["bn"] == bn], budgets, columns)
        for name in dict.fromkeys((r["setting"], r["bn"], r.get("training", "")) for r in mine):
            same = [r for r in mine if (r["setting"], r["bn"], r.get("training", "")) == name]
            if any("accuracy" in row or "failure" in row for row in same):
                lines.append(_line(same, budgets, extra, dense))
    return lines


_MANY = 4


def _best(rows: list[Row], budgets: list[int], columns: list[str]) -> list[str]:
    """Write a line of the best setting at each budget, judged on the test images."""
    cells = {}
    for budget in budgets:
        by_setting = {
            name: found
            for name in {row["setting"] for row in rows}
            if (found := tested([r for r in rows if r["setting"] == name], budget))
        }
        if by_setting:
            cells[budget] = max(by_setting.values(), key=mean)
    if not cells:
        return []
    compared = (
        f"**best at each point** of {len({row['setting'] for row in rows})} settings compared"
    )
    left = sum("accuracy" not in row and contends(rows, row, 0) for row in rows if not row["seed"])
    if left:
        compared += f"; {left} points near the best NOT tested yet"
    named = [rows[0]["tool"], compared, "recalibrated" if rows[0]["bn"] else ""]
    numbers = [f"**{spread(cells[b])}**" if b in cells else "" for b in budgets]
    filled = [*named, *([""] if "training" in columns else []), *numbers]
    return ["| " + " | ".join([*filled, *[""] * (len(columns) - len(filled))]) + " |"]


def _line(rows: list[Row], budgets: list[int], extra: list[str], dense: Row | None) -> str:
    first = rows[0]
    cells = [first["tool"], first["setting"], "recalibrated" if first["bn"] else ""]
    cells += [str(first.get(name) or "") for name in extra]
    for budget in budgets:
        failures = [r["failure"] for r in rows if r["removed"] == budget and "failure" in r]
        found = tested(rows, budget)
        cells.append(spread(found) if found else f"FAILED: {failures[0]}" if failures else "")
    done = [row for row in rows if "accuracy" in row]
    spare = [100 - row["removed"] - 100 * row["macs"] / dense["macs"] for row in done if dense]
    cells += [
        f"{max(spare):.1f}" if spare else "",
        str(max((row["images"] for row in done), default="")),
        str(len({row["seed"] for row in done})),
        f"{max((row['seconds'] for row in done), default=0):.0f}",
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def tested(rows: Iterable[Row], removed: int) -> list[float]:
    """Return the accuracies at one budget, one for each seed."""
    return [row["accuracy"] for row in rows if row["removed"] == removed and "accuracy" in row]


def spread(values: list[float]) -> str:
    """Write mean and standard deviation.

    Example:
        >>> spread([91.0, 92.0]), spread([90.0])
        ('91.50 ± 0.71', '90.00')
    """
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")
