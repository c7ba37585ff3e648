"""The tasks of the command line as functions: each does its part and records it."""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from prunella import report as reporting
from prunella.config import Config
from prunella.errors import ConfigError, TaskError, WorkspaceError
from prunella.pipeline.budgets import reachable
from prunella.pipeline.context import Context, borrowed
from prunella.pipeline.finishing import finish, latency, test
from prunella.pipeline.healing import heal
from prunella.pipeline.judging import check_floor, judge
from prunella.pipeline.keeping import check_owner, making_way, opened
from prunella.pipeline.peers import by_first
from prunella.pipeline.recording import RECORD, assemble, current_model, record
from prunella.pipeline.rounds import loop
from prunella.pipeline.slots import Attempt, Slot, after, attempts
from prunella.pipeline.splits import look_at_splits, look_at_training
from prunella.pipeline.stages import (
    Start,
    baseline,
    cut,
    dense_start,
    sensitivity,
    tuned_start,
)
from prunella.pipeline.suggesting import Forecast, forecast, forecasts, known_or_estimated
from prunella.progress import Progress
from prunella.record import Outcome, RunRecord
from prunella.workspace import Entry, Workspace


@dataclass(frozen=True, slots=True)
class Result:
    """What a verb leaves: the record of the run so far, and what to do next.

    Attributes:
        record: Everything known of the run.
        folder: The work folder; `prunella.load(folder / "final", fresh_model)` after `transform`.
        text: What happened, in a sentence.
        next: The command to go on with, "" at the end.
        layers: Multiply-accumulates of one sample by module; only from `stat`.
    """

    record: RunRecord
    folder: Path
    text: str
    next: str
    layers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What is predicted of some budgets; nothing was pruned or trained.

    Attributes:
        metric: The name of the metric.
        baseline: The dense model's metric, on the valid split.
        rows: The forecasts, the largest budget first.
        source: Where the sensitivity comes from: "measured", or how it was estimated.
        why: Why there is no smaller budget; "" where there is no reason to tell.
        next: The command to go on with.
    """

    metric: str
    baseline: float
    rows: tuple[Forecast, ...]
    source: str
    why: str
    next: str


def analyze(
    config: Config, progress: Progress | None = None, *, typed: str | None = None
) -> Result:
    """Measure the sensitivity of every group of the dense model.

    Args:
        config: The settings.
        progress: See `prunella.progress`.
        typed: The settings as typed, for the commands that messages suggest.
    """
    with opened(config, progress, typed) as context:
        look_at_splits(context, "train", "valid")
        baseline(context)
        sensitivity(context)
        latency(context, None)
        text = f"the sensitivity of {len(context.groups)} groups is measured"
        return _recorded(context, text, context.command("prune"))


def prune(config: Config, progress: Progress | None = None, *, typed: str | None = None) -> Result:
    """Prune the dense model, or the one finetuned last, to the budget: one round, by hand."""
    budget = config.to_budget()
    with opened(config, progress, typed) as context:
        look_at_splits(context, "train", "valid")
        first = baseline(context)
        check_floor(context, first)
        target = reachable(context, budget)
        analyzed = sensitivity(context)
        tries = _tries(context)
        slot = _place(tries)
        if tries and tries[-1].verdict is not None and tries[-1].pruned.payload["target"] == target:
            if not tries[-1].accepted:
                raise ConfigError(
                    f"this budget was tried in {tries[-1].slot}: "
                    f"{tries[-1].verdict.payload['reason']}. Give a larger `--budget`, more epochs "
                    "or a lower floor"
                )
            slot = tries[-1].slot
        start = _start(context, tries, slot)
        cut(context, slot, start, target, analyzed, last=True)
        latency(context, context.load(f"{slot.name}/pruned"))
        return _recorded(context, f"{slot} is pruned", context.command("finetune"))


def suggest(
    config: Config, progress: Progress | None = None, *, typed: str | None = None
) -> Suggestion:
    """Predict the metric for a row of budgets, from the sensitivity on record or a quick estimate.

    Args:
        config: The settings.
        progress: See `prunella.progress`.
        typed: The settings as typed, for the commands that messages suggest.
    """
    with opened(config, progress, typed) as context:
        curves, source = known_or_estimated(context)
        rows, why = forecasts(context, curves)
        best = next((row for row in rows if row.knee and not any(r.asked for r in rows)), None)
        budget = {} if best is None else {f"budget.{n}": s for n, s in best.budget.items()}
        next_ = context.command("prune", **budget)
        return Suggestion(curves.metric, curves.baseline, tuple(rows), source, why, next_)


def rehearse(
    config: Config, progress: Progress | None = None, *, typed: str | None = None
) -> Suggestion:
    """Make the plan for the budget and predict what it does; no model is made, no record changed.

    Arguments are those of `suggest`.
    """
    budget = config.to_budget()
    with opened(config, progress, typed) as context:
        target = reachable(context, budget)
        curves, source = known_or_estimated(context)
        row = replace(forecast(context, curves, target), asked=True)
        return Suggestion(
            curves.metric, curves.baseline, (row,), source, "", context.command("prune")
        )


def finetune(
    config: Config, progress: Progress | None = None, *, typed: str | None = None
) -> Result:
    """Finetune what was pruned last, judge it, and say whether it is good enough to go on."""
    with opened(config, progress, typed) as context:
        first = baseline(context)
        tries = _tries(context)
        if not tries:
            raise WorkspaceError(
                f"nothing is pruned yet in `{config.folder}`. Run "
                f"`{context.command('prune')}` first"
            )
        slot = tries[-1].slot
        start = _start(context, tries, slot)
        tuned = heal(context, slot, start, tries[-1].pruned, last=True)
        verdict = judge(context, slot, tuned, first).payload
        latency(context, context.load(f"{slot.name}/finetuned"))
        if verdict["accepted"]:
            next_ = context.command("transform")
            text = f"{slot}: {verdict['reason']}. Prune further with a smaller budget, or transform"
        else:
            next_ = context.command("prune")
            text = f"{slot}: {verdict['reason']}. Prune this round again with a larger budget"
        return _recorded(context, text, next_)


def transform(
    config: Config, progress: Progress | None = None, *, typed: str | None = None
) -> Result:
    """Make the final model of the last accepted round, prove it, and test it."""
    with opened(config, progress, typed) as context:
        baseline(context)
        accepted = [attempt for attempt in _tries(context) if attempt.accepted]
        if not accepted:
            raise WorkspaceError(
                f"no finetuned round in `{config.folder}` meets the floor, so there is nothing to "
                f"transform. Run `{context.command('prune')}` and "
                f"`{context.command('finetune')}` first"
            )
        best = accepted[-1]
        assert best.tuned is not None, "an accepted attempt is finetuned"
        return _end(context, best.slot, best.tuned, context.command("report"))


def run(config: Config, progress: Progress | None = None, *, typed: str | None = None) -> Result:
    """Do it all: analyze, prune and finetune until the budget, transform, test, report."""
    budget = config.to_budget()
    with opened(config, progress, typed) as context:
        look_at_splits(context, "train", "valid", "test")
        target = reachable(context, budget)
        first = baseline(context)
        check_floor(context, first)
        look_at_training(context)
        analyzed = sensitivity(context)
        record(context, upto=Slot(0, 0))
        best, met = loop(context, first, analyzed, target)
        if best is None:
            make_way = making_way(context, Slot(0, 0))

            def put_aside() -> None:
                if context.space.read("final") is not None:  # an earlier run's
                    make_way()

            by_first(context.peers, put_aside)
            context.note("no round met the floor, so the model stays as it is")
            return _recorded(context, context.notes[-1], "", "floor")
        if not met:
            context.note(
                f"the budget was not met: the last model that met the floor is that of {best[0]}. "
                "More epochs, more rounds or a lower floor may go further"
            )
        return _end(context, *best, met=met, report=True)


def stat(config: Config, progress: Progress | None = None, *, typed: str | None = None) -> Result:
    """Count what the model costs, dense and as far as it is pruned, and list its groups."""
    context = Context(config, progress, typed)
    with borrowed(context):
        check_owner(context)
        so_far = assemble(context)
        model = current_model(context)
        found = context.groups if model is None else context.groups_of(model)
    layers: dict[str, int] = defaultdict(int)
    for term in found.terms:
        size = math.prod(len(channels) for channels in term.dims)
        layers[term.module] += term.factor * size // found.graph.samples
    return Result(so_far, config.folder, "", context.command("analyze"), dict(layers))


def report(config: Config) -> Path:
    """Write the report of a run from its record, of one that was killed as far as it went.

    Raises:
        WorkspaceError: Nothing was run yet in this folder; it is not made.
    """
    entry = Workspace(config.folder).read(RECORD)
    if entry is None:
        why = "nothing is measured there yet" if config.folder.is_dir() else "it does not exist"
        raise WorkspaceError(
            f"there is no run to report on in `{config.folder}`: {why}. Name the work folder of a "
            "run with `--run.folder`, or start one with `prunella run`"
        )
    return reporting.write(config.folder, RunRecord.from_data(entry.payload))


def _tries(context: Context) -> list[Attempt]:
    """Read the attempts so far, before the first process changes them."""
    return by_first(context.peers, lambda: list(attempts(context.space)))


def _place(tries: list[Attempt]) -> Slot:
    """Say where the next prune by hand goes: a new attempt, or again what is not finetuned yet."""
    if not tries:
        return Slot(1, 1)
    return tries[-1].slot if tries[-1].verdict is None else after(tries[-1])


def _start(context: Context, tries: list[Attempt], slot: Slot) -> Start:
    """Give the model that the attempt in `slot` starts from."""
    before = [attempt for attempt in tries if attempt.accepted and attempt.slot < slot]
    if not before or before[-1].tuned is None:
        return dense_start(context)
    return tuned_start(context, before[-1].slot, before[-1].tuned)


def _end(
    context: Context,
    slot: Slot,
    tuned: Entry,
    next_: str = "",
    *,
    met: bool = True,
    report: bool = False,
) -> Result:
    """Make, time and test the final model, and record how the run ended.

    Args:
        context: Of the run.
        slot: The attempt to end with.
        tuned: Its finetuning.
        next_: The command to go on with.
        met: Whether it is within the budget.
        report: Write the report, too.

    Raises:
        TaskError: The test split cannot judge it; all else is recorded, with the reason.
    """
    final = finish(context, slot, tuned)
    kept = _kept(context)
    untested: TaskError | None = None
    try:
        test(context, final)
    except TaskError as cause:
        untested = cause
    outcome: Outcome = "floor" if not met else "done" if kept else "missed"
    result = _recorded(context, _where(context), next_, outcome, str(untested or ""))
    if report:
        by_first(context.peers, lambda: reporting.write(context.space.folder, result.record))
        page = context.space.folder / reporting.FILE
        result = replace(result, text=f"{result.text}; the report is `{page}`")
    if untested is not None:
        raise TaskError(f"{untested}. Untested, {result.text}") from untested
    return result


def _kept(context: Context) -> bool:
    """Say whether the final model keeps a budget on time, if there is one.

    Whatever else the machine does may let a plan pass or fail that was timed before: this is what
    the stopwatch says last.
    """
    held = latency(context, context.load("final")).payload.get("budget")
    if held is None or held["kept"] is not False:
        return True
    context.note(
        f"the budget on latency is not kept: at most {held['limit_ms']:.4g} ms were asked, "
        f"{held['predicted_ms']:.4g} ms predicted, and the final model takes "
        f"{held['got_ms']:.4g} ms ({held['runtime']})"
    )
    return False


def _where(context: Context) -> str:
    return f"the final model is in `{context.space.folder / 'final'}`"


def _recorded(
    context: Context, text: str, next_: str, outcome: Outcome = "partial", untested: str = ""
) -> Result:
    found = record(context, outcome, untested=untested)
    return Result(found, context.space.folder, text, next_)
