"""The loop: prune a little, finetune, judge, and again, until the budget or the floor."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from prunella.errors import NothingToPruneError
from prunella.pipeline.budgets import shares
from prunella.pipeline.context import Context
from prunella.pipeline.healing import heal
from prunella.pipeline.judging import judge
from prunella.pipeline.peers import by_first
from prunella.pipeline.recording import record
from prunella.pipeline.slots import Slot, forget_after
from prunella.pipeline.stages import Start, cut, dense_start, tuned_start
from prunella.workspace import Entry

Shares = Mapping[str, float]

_CLOSE = 1.01  # a target within a percent of the budget is the budget: no round for crumbs

log = logging.getLogger("prunella")


@dataclass(frozen=True)
class Position:
    """Where the loop stands.

    Attributes:
        slot: The attempt to make next.
        reached: Shares of the dense model that remain so far.
        step: What of that may remain after the next round.
        retries: How many smaller steps may still be tried.
        start: The model the next round begins with.
        best: The last accepted attempt and its finetuning, None before the first.
    """

    slot: Slot
    reached: Shares
    step: Shares
    retries: int
    start: Start
    best: tuple[Slot, Entry] | None = None


def schedule(reached: Shares, step: Shares, budget: Shares) -> dict[str, float]:
    """Say what may remain after the next round.

    Every round leaves the same share of what was left, so reductions relative to the dense model
    grow: 0.5 in three rounds is 0.79, 0.63, 0.5.
    """
    target = {name: reached[name] * step[name] for name in budget}
    if all(target[name] <= budget[name] * _CLOSE for name in budget):
        return dict(budget)
    return {name: max(target[name], budget[name]) for name in budget}


def first_step(budget: Shares, rounds: int) -> dict[str, float]:
    """Say what share of the rest each of so many equal rounds leaves."""
    return {name: share ** (1 / rounds) for name, share in budget.items()}


def smaller(step: Shares) -> dict[str, float]:
    """Halve a step: two such rounds remove what one of the old ones did."""
    return {name: math.sqrt(share) for name, share in step.items()}


def loop(
    context: Context, baseline: Entry, analyzed: Entry, budget: Shares
) -> tuple[tuple[Slot, Entry] | None, bool]:
    """Go round until the budget is met, or no smaller step meets the floor.

    Returns:
        The attempt to end with and its finetuning (None where no attempt met the floor), and
        whether it is within the budget.
    """
    at = Position(
        slot=Slot(1, 1),
        reached=dict.fromkeys(budget, 1.0),
        step=first_step(budget, context.config.prune.rounds),
        retries=context.config.prune.retries,
        start=dense_start(context),
    )
    while at.reached != budget:
        target = schedule(at.reached, at.step, budget)
        if _already(context, at, target):
            at = replace(at, reached=target)
            continue
        try:
            pruned = cut(context, at.slot, at.start, target, analyzed, last=target == budget)
        except NothingToPruneError:
            if at.slot.attempt == 1:
                raise
            context.note(f"{at.slot}: a smaller step would remove nothing")
            _end_at(context, Slot(at.slot.round, at.slot.attempt - 1))
            return at.best, False
        tuned = heal(context, at.slot, at.start, pruned, last=target == budget)
        verdict = judge(context, at.slot, tuned, baseline).payload
        record(context, upto=at.slot)
        log.info("%s: %s", at.slot, verdict["reason"])
        if verdict["accepted"]:
            at = _forward(context, at, target, tuned)
        elif at.retries:
            at = _again(at)
            log.warning(
                "%s: trying a smaller step, to %s (%d more smaller steps may follow)",
                at.slot,
                shares(schedule(at.reached, at.step, budget)),
                at.retries,
            )
        else:
            _end_at(context, at.slot)
            return at.best, False
    if at.best is not None:
        _end_at(context, at.best[0])
    return at.best, True


def _end_at(context: Context, slot: Slot) -> None:
    """Forget what comes after: an earlier run, with other settings, may have gone on from here."""
    by_first(context.peers, lambda: forget_after(context.space, slot))


def _forward(context: Context, at: Position, target: Shares, tuned: Entry) -> Position:
    return replace(
        at,
        slot=Slot(at.slot.round + 1, 1),
        reached=target,
        start=tuned_start(context, at.slot, tuned),
        best=(at.slot, tuned),
    )


def _again(at: Position) -> Position:
    slot = Slot(at.slot.round, at.slot.attempt + 1)
    return replace(at, slot=slot, step=smaller(at.step), retries=at.retries - 1)


def _already(context: Context, at: Position, target: Shares) -> bool:
    """Tell whether the round before went so far (channels are whole) that this one is done."""
    if at.best is None:
        return False
    costs = context.space.read(at.best[0].record("prune"))
    assert costs is not None, "an accepted attempt was pruned"
    return all(
        costs.payload[name] <= share * getattr(context.priced, name)
        for name, share in target.items()
    )
