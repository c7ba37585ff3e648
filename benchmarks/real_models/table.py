"""The result: one row for each model, tool and setting, as JSON and as a page."""

from benchmarks import real_models
from benchmarks.record import Row, versions

PACKAGES = ("prunella", "torch", "torch-pruning", "torchvision", "timm", "transformers")
HEAD = "tool | setting | MACs left | params left | {metric} before | after | drop | seconds"


def page(rows: list[Row]) -> str:
    """Write the Markdown page."""
    lines = [
        "# Real models: what is left after removing 10% of the MACs, without finetuning",
        "",
        f"`python -m benchmarks.real_models` with {', '.join(versions(PACKAGES))}.",
        "",
        "Protocol" + (real_models.__doc__ or "").partition("Protocol")[2].strip(),
        "",
        "*seconds*: pruning, all that is measured or bisected for it included, beside other work "
        "on the machine; without the test. *drop* is in points; the first metric named is the "
        "row's, further ones are in the JSON file. On 500 pictures one picture is 0.2 points and "
        "the standard error of a top-1 about 2; on 1000 it is 0.1 and 1.5.",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        lines += ["", *_section(model, [row for row in rows if row["model"] == model])]
    return "\n".join(lines) + "\n"


def _section(model: str, rows: list[Row]) -> list[str]:
    dense = next(row for row in rows if row["tool"] == "dense")
    if "failure" in dense:
        return [f"## {model}", "", f"The dense model FAILED: {dense['failure']}"]
    metrics = list(dense["metrics"])
    head = HEAD.format(metric=metrics[0])
    lines = [
        f"## {model}",
        "",
        f"{dense['macs'] / 1e6:,.1f} MMACs, {dense['params']:,} parameters; dense "
        + ", ".join(f"{name} {value:.2f}" for name, value in dense["metrics"].items())
        + f". *calibration* is {dense['note']}.",
        "",
        f"| {head} |",
        "| --- " * (head.count("|") + 1) + "|",
    ]
    best = _best(rows, metrics[0])
    for row in rows:
        if row["tool"] != "dense":
            lines.append(_line(row, dense, metrics[0], row in best))
    return lines


def _best(rows: list[Row], metric: str) -> list[Row]:
    """Return the best row of each tool."""
    found: dict[str, Row] = {}
    for row in rows:
        if "metrics" not in row or row["tool"] == "dense":
            continue
        known = found.get(row["tool"])
        if known is None or row["metrics"][metric] > known["metrics"][metric]:
            found[row["tool"]] = row
    return list(found.values())


def _line(row: Row, dense: Row, metric: str, best: bool) -> str:
    names = [row["tool"], row["setting"]]
    if "failure" in row:
        cells = [*names, f"FAILED: {row['failure']}".replace("|", "\\|"), *[""] * 5]
        return "| " + " | ".join(cells) + " |"
    before, after = dense["metrics"][metric], row["metrics"][metric]
    result = f"{after:.2f}"
    cells = [
        *names,
        f"{row['macs'] / dense['macs']:.3f}",
        f"{row['params'] / dense['params']:.3f}",
        f"{before:.2f}",
        f"**{result}**" if best else result,
        f"{before - after:.2f}",
        f"{row['seconds']:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"
