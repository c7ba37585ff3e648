"""Put a run's record together from what its work folder holds, and write it down."""

import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from prunella.pipeline.budgets import asked
from prunella.pipeline.context import Context
from prunella.pipeline.judging import floor_of
from prunella.pipeline.peers import by_first
from prunella.pipeline.profiling import PROFILE, needs_profile
from prunella.pipeline.slots import Attempt, Slot, attempts
from prunella.record import (
    AttemptRecord,
    CertificateRecord,
    EpochRecord,
    ExperimentRecord,
    FrozenRecord,
    GroupRecord,
    LatencyBudgetRecord,
    LatencyRecord,
    ModelRecord,
    Outcome,
    RoundRecord,
    RunRecord,
    SensitivityRecord,
)
from prunella.sensitivity import Sensitivity
from prunella.workspace import Entry, Workspace

RECORD = "run"

# Stages of the record by the names of their own records; rounds have theirs in folders.
_STAGES = {
    PROFILE: "profile",
    "baseline": "baseline",
    "sensitivity": "analyze",
    "final": "transform",
    "test": "test",
}


def assemble(
    context: Context, outcome: Outcome = "partial", upto: Slot | None = None, untested: str = ""
) -> RunRecord:
    """Read the work folder into a `RunRecord`.

    Args:
        context: Of the run.
        outcome: How it ended.
        upto: Of a run under way, the last attempt so far; what is on disk of later ones, and of an
            end, is an earlier run's. None for all that is there.
        untested: Why the test split gave no figure, where it was to give one.
    """
    space, task, config = context.space, context.task, context.config
    read = {name: space.read(name) for name in (*_STAGES, "latency")}
    tries = list(attempts(space))
    if upto is not None:
        tries = [attempt for attempt in tries if attempt.slot <= upto]
        read |= dict.fromkeys(("final", "test", "latency"))
    current = _current(tries, ended=outcome != "partial")
    final = read["final"]
    if final is not None and (current is None or not _made_of(final, current)):
        final = read["final"] = None
    groups = _groups(final or (current.pruned if current else None), context)
    base = read["baseline"]
    return RunRecord(
        task=task.name,
        metric=task.metric.name,
        higher_is_better=task.metric.higher_is_better,
        outcome=outcome,
        config=config.model_dump(mode="json"),
        command=context.command("run"),
        created="" if base is None else str(base.payload["created"]),
        baseline=_dense(context, read),
        compressed=_compressed(current, final, read),
        floor=None if base is None else floor_of(context, base),
        budget={} if needs_profile(context) else asked(context),
        sensitivity=_sensitivity(read["sensitivity"]),
        rounds=_rounds(tries),
        groups=groups,
        frozen=tuple(
            FrozenRecord(group.name, group.channels, tuple(map(str, group.frozen)))
            for group in context.groups.frozen
        ),
        certificate=_certificate(final or (current.pruned if current else None)),
        latency_text="" if read["latency"] is None else read["latency"].payload.get("text", ""),
        epochs=sum(int(a.tuned.payload["epochs"]) for a in tries if a.tuned is not None),
        stages=_seconds(tries, read),
        environment=environment(context),
        notes=tuple(context.notes),
        latency_budget=_latency_budget(read["latency"]),
        untested=untested,
    )


def record(
    context: Context, outcome: Outcome = "partial", upto: Slot | None = None, untested: str = ""
) -> RunRecord:
    """Write down what is known of the run so far, which a report is made from; see `assemble`.

    The record of a run that has ended stays until something it rests on is made anew.
    """
    if not needs_profile(context):
        asked(context)  # here, where all processes are: it reads what the first one wrote

    def write() -> RunRecord:
        found = assemble(context, outcome, upto, untested)
        if outcome != "partial" or not ended(context.space):
            context.space.write(RECORD, {}, found.to_data())
        return found

    return by_first(context.peers, write)


def ended(space: Workspace) -> bool:
    """Say whether the run on record came to its end."""
    entry = space.read(RECORD)
    return entry is not None and entry.payload["outcome"] != "partial"


def environment(context: Context) -> dict[str, str]:
    """Say what the run ran on."""
    return {
        "prunella": version("prunella"),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "system": f"{platform.system()} {platform.machine()}",
        "device": str(context.device),
        "threads": str(torch.get_num_threads()),
    }


def _current(tries: list[Attempt], *, ended: bool) -> Attempt | None:
    """Pick the attempt whose model is the run's: the one under way, else the last accepted.

    A run that has ended has none under way: what was pruned and not finetuned since is left aside.
    """
    if tries and tries[-1].verdict is None and not ended:
        return tries[-1]
    accepted = [attempt for attempt in tries if attempt.accepted]
    return accepted[-1] if accepted else None


def _made_of(final: Entry, attempt: Attempt) -> bool:
    made = {"from": attempt.slot.name, "weights": attempt.tuned and attempt.tuned.payload["model"]}
    return all(final.inputs[part] == found for part, found in made.items())


def current_model(context: Context) -> nn.Module | None:
    """Load the model the run is at, None where nothing is pruned yet."""
    current = _current(list(attempts(context.space)), ended=False)
    if current is None:
        return None
    return context.load(f"{current.slot.name}/{'finetuned' if current.tuned else 'pruned'}")


def _dense(context: Context, read: Mapping[str, Entry | None]) -> ModelRecord:
    base, test, latency = read["baseline"], read["test"], read["latency"]
    return ModelRecord(
        macs=context.costs.macs,
        params=context.costs.params,
        valid=None if base is None else base.payload["valid"],
        test=None if test is None else test.payload["baseline"],
        latency=_latency(latency, "baseline"),
    )


def _compressed(
    current: Attempt | None, final: Entry | None, read: Mapping[str, Entry | None]
) -> ModelRecord | None:
    if current is None:
        return None
    costs, test = (final or current.pruned).payload, read["test"]
    tested = final is not None and test is not None
    tested = tested and test.inputs["model"] == final.payload["model"]  # type: ignore[union-attr]
    judged = current.tuned.payload["metric"] if current.tuned else costs.get("pruned_metric")
    return ModelRecord(
        macs=costs["macs"],
        params=costs["params"],
        valid=judged,
        test=test.payload["compressed"] if tested and test is not None else None,
        latency=_latency(read["latency"], "compressed"),
    )


def _latency(entry: Entry | None, which: str) -> LatencyRecord | None:
    if entry is None or which not in entry.payload:
        return None
    return LatencyRecord(**entry.payload[which])


def _groups(entry: Entry | None, context: Context) -> tuple[GroupRecord, ...]:
    if entry is None:
        return tuple(GroupRecord(g.name, g.channels, g.channels) for g in context.groups)
    return tuple(GroupRecord(**group) for group in entry.payload["groups"])


def _latency_budget(entry: Entry | None) -> LatencyBudgetRecord | None:
    held = None if entry is None else entry.payload.get("budget")
    return None if held is None else LatencyBudgetRecord(**held)


def _sensitivity(entry: Entry | None) -> SensitivityRecord | None:
    if entry is None:
        return None
    found = Sensitivity.from_json(str(entry.payload["sensitivity"]))
    return SensitivityRecord(
        metric=found.metric,
        higher_is_better=found.higher_is_better,
        baseline=found.baseline,
        ratios=found.ratios,
        curves=found.curves,
        channels=found.channels,
    )


def _certificate(entry: Entry | None) -> CertificateRecord | None:
    if entry is None:
        return None
    proof = entry.payload["certificate"]
    return CertificateRecord(
        error=proof["error"],
        dtype=proof["dtype"],
        text=(
            f"the pruned model equals the masked one to {proof['error']:.1e} (relative, "
            f"{proof['dtype']}, {proof['runs']} comparisons, allowed {proof['tolerance']:.0e})"
        ),
    )


def _rounds(tries: list[Attempt]) -> tuple[RoundRecord, ...]:
    numbers = sorted({attempt.slot.round for attempt in tries})
    return tuple(
        RoundRecord(number, tuple(_attempt(a) for a in tries if a.slot.round == number))
        for number in numbers
    )


def _attempt(attempt: Attempt) -> AttemptRecord:
    pruned = attempt.pruned.payload
    tuned: Mapping[str, Any] = attempt.tuned.payload if attempt.tuned else {}
    verdict: Mapping[str, Any] = attempt.verdict.payload if attempt.verdict else {}
    seconds = {"prune": pruned["seconds"]}
    if tuned:
        seconds["finetune"] = tuned["seconds"]
    return AttemptRecord(
        number=attempt.slot.attempt,
        target=pruned["target"],
        macs=pruned["macs"],
        params=pruned["params"],
        groups=tuple(GroupRecord(**group) for group in pruned["groups"]),
        pruned_metric=pruned["pruned_metric"],
        metric=tuned.get("metric"),
        experiments=tuple(_experiment(found) for found in tuned.get("experiments", ())),
        accepted=attempt.accepted,
        reason=verdict.get("reason", ""),
        seconds=seconds,
        latency=pruned.get("latency"),
        found=pruned.get("found", ""),
    )


def _experiment(data: Mapping[str, Any]) -> ExperimentRecord:
    epochs = tuple(EpochRecord(**epoch) for epoch in data["epochs"])
    return ExperimentRecord(**{**data, "epochs": epochs})


def _seconds(tries: list[Attempt], read: Mapping[str, Entry | None]) -> dict[str, float]:
    seconds = {
        stage: float(entry.payload["seconds"])
        for name, stage in _STAGES.items()
        if (entry := read.get(name)) is not None
    }
    if tries:
        seconds["prune"] = sum(float(a.pruned.payload["seconds"]) for a in tries)
        seconds["finetune"] = sum(float(a.tuned.payload["seconds"]) for a in tries if a.tuned)
    return seconds
