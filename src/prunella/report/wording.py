"""Numbers and sentences of the report."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from markupsafe import Markup, escape

from prunella.record import FrozenRecord, LatencyBudgetRecord, ModelRecord, RunRecord

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the Baseline / Compressed / Delta table.

    Attributes:
        name: What was measured.
        baseline: The dense model's figure.
        compressed: The pruned model's figure.
        delta: The difference in words.
        left: Share of the baseline that remains, for costs; None for a metric.
        good: Whether the difference is to the user's liking; None where there is none to judge.
        second: Whether another row says the same better: validation where there is a test.
    """

    name: str
    baseline: str
    compressed: str
    delta: str
    left: float | None = None
    good: bool | None = None
    second: bool = False


def count(value: float | None) -> str:
    """Write a count with four digits and a prefix: 40813184 -> `40.81 M`."""
    if value is None:
        return NONE
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size * 0.99995:
            return f"{value / size:.4g} {prefix}"
    return f"{value:,.0f}"


def measure(value: float | None) -> str:
    """Write a metric or a loss with four digits."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:.4g}".replace("-", MINUS)


def difference(value: float, before: float) -> str:
    """Write how far a metric moved, to the last digit that `measure` shows of the larger one."""
    largest = max(abs(value), abs(before))
    if not math.isfinite(largest) or largest == 0:
        return "0" if largest == 0 else NONE
    moved = round(value - before, 3 - math.floor(math.log10(largest)))
    return f"{moved:+.4g}".replace("-", MINUS) if moved else "0"


def percent(share: float | None) -> str:
    """Write a share: 0.4981 -> `49.8%`."""
    return NONE if share is None else f"{100 * share:.1f}%".replace("-", MINUS)


def duration(seconds: float | None) -> str:
    """Write a time in its two largest units: 3725 -> `1 h 2 min`."""
    if seconds is None:
        return NONE
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def setting(value: object) -> str:
    """Write a setting as a user would: lists with commas, numbers short, nothing for None."""
    if value is None or value in ("", (), []):
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", MINUS)
    if isinstance(value, list | tuple):
        return ", ".join(setting(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} = {setting(item)}" for key, item in value.items())
    return str(value)


def ticks(text: str) -> Markup:
    """Set what stands in backticks as code, everything else as it is; nothing becomes markup."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def title(run: RunRecord) -> str:
    """Name the run by what it reached: `cifar10 at 49.8% of its MACs`."""
    if run.compressed is None:
        return run.task
    return f"{run.task} at {percent(run.compressed.macs / run.baseline.macs)} of its MACs"


def verdict(run: RunRecord) -> str:
    """Say in one sentence how the run ended."""
    if run.outcome == "partial":
        return "The run is not at its end; this is what is known so far."
    if run.outcome == "missed":
        return "The budget is met as predicted, but the stopwatch says that it is not kept."
    if run.outcome == "floor":
        return (
            f"Stopped before the budget: this is the smallest model found whose {run.metric} "
            f"on the validation data is not worse than {measure(run.floor)}."
        )
    if run.certificate is None:
        return "The budget is met."
    return "The budget is met, and the pruned model is proven equal to the masked one."


def held(budget: LatencyBudgetRecord) -> str:
    """Say what was asked of time, what was predicted, and what came."""
    kept = {True: "kept", False: "NOT kept", None: "more, but not beyond the noise of these runs"}
    return (
        f"asked {setting(budget.asked)}, at most {measure(budget.limit_ms)} ms; predicted "
        f"{measure(budget.predicted_ms)} ms; got {measure(budget.got_ms)} ms on {budget.runtime}: "
        f"{kept[budget.kept]}"
    )


def headline_rows(run: RunRecord) -> tuple[Row, ...]:
    """Set the dense and the pruned model side by side, a row for each thing measured."""
    dense, pruned = run.baseline, run.compressed
    rows = [_metric_row(run, split) for split in ("test", "valid") if _known(dense, split)]
    if run.untested:
        rows.insert(0, Row(f"{run.metric} (test)", NONE, NONE, "no number", good=False))
    rows.append(_cost_row("MACs", dense.macs, pruned.macs if pruned else None))
    rows.append(_cost_row("Parameters", dense.params, pruned.params if pruned else None))
    if dense.latency:
        rows.append(_latency_row(run))
    return tuple(rows)


def by_reason(frozen: Sequence[FrozenRecord]) -> dict[str, tuple[FrozenRecord, ...]]:
    """Sort frozen groups under the reasons they share, the commonest reason first."""
    reasons: dict[str, list[FrozenRecord]] = {}
    for group in frozen:
        reasons.setdefault("; ".join(group.reasons), []).append(group)
    ordered = sorted(reasons.items(), key=lambda item: -len(item[1]))
    return {reason: tuple(groups) for reason, groups in ordered}


def snippet(run: RunRecord) -> str:
    """Show how to use the result."""
    folder = PurePosixPath(run.plan).parent
    return (
        "import prunella\n\n"
        "model = YourModel()  # as you built it for the run, any weights\n"
        f'model = prunella.load("{folder}", model)  # smaller, finetuned, your own class'
    )


def _known(model: ModelRecord, split: str) -> bool:
    return getattr(model, split) is not None


def _metric_row(run: RunRecord, split: str) -> Row:
    before: float = getattr(run.baseline, split)
    after: float | None = getattr(run.compressed, split) if run.compressed else None
    name = f"{run.metric} ({'test' if split == 'test' else 'validation'})"
    if after is None:
        return Row(name, measure(before), NONE, NONE)
    change = after - before
    good = change == 0 or (change > 0) == run.higher_is_better
    second = split == "valid" and run.compressed is not None and run.compressed.test is not None
    return Row(
        name, measure(before), measure(after), difference(after, before), good=good, second=second
    )


def _cost_row(name: str, before: int, after: int | None) -> Row:
    if after is None:
        return Row(name, count(before), NONE, NONE)
    left = after / before
    return Row(name, count(before), count(after), percent(left - 1), left, left < 1)


def _latency_row(run: RunRecord) -> Row:
    before = run.baseline.latency
    after = run.compressed.latency if run.compressed else None
    assert before is not None, "asked for only where the dense model was timed"
    name = f"Latency ({run.latency_budget.runtime})" if run.latency_budget else "Latency"
    if after is None:
        return Row(name, f"{measure(before.median_ms)} ms", NONE, NONE)
    left = after.median_ms / before.median_ms
    return Row(
        name,
        f"{measure(before.median_ms)} ms",
        f"{measure(after.median_ms)} ms",
        run.latency_text or percent(left - 1),
        left,
        # The text knows about noise; a share of time alone is no reason to praise or blame.
        None,
    )


FILTERS: dict[str, Callable[..., str]] = {
    "count": count,
    "measure": measure,
    "percent": percent,
    "duration": duration,
    "setting": setting,
    "ticks": ticks,
    "held": held,
}
