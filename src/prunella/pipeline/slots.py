"""Where a run stands: its rounds, each with attempts, of which one may have been accepted."""

from collections.abc import Iterator
from dataclasses import dataclass

from prunella.workspace import Entry, Workspace


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """The place of one attempt at one round, both counted from 1."""

    round: int
    attempt: int

    @property
    def name(self) -> str:
        """Its folder in the work folder."""
        return f"rounds/{self.round:02}/{self.attempt}"

    def record(self, stage: str) -> str:
        """Name the record of a stage ("prune", "finetune", "verdict") of this attempt."""
        return f"{self.name}/{stage}"

    def __str__(self) -> str:
        """Say which round, and which attempt at it if not the first."""
        again = f", attempt {self.attempt}" if self.attempt > 1 else ""
        return f"round {self.round}{again}"


@dataclass(frozen=True, slots=True)
class Attempt:
    """What is on disk of one attempt."""

    slot: Slot
    pruned: Entry
    tuned: Entry | None
    verdict: Entry | None

    @property
    def accepted(self) -> bool:
        """Whether the next round starts from it."""
        return self.verdict is not None and bool(self.verdict.payload["accepted"])


def attempts(space: Workspace) -> Iterator[Attempt]:
    """Read the attempts of a run in order, up to the first gap.

    A round that was followed by another has an accepted attempt; what lies behind a gap belongs to
    an earlier run with other settings, and is not part of this one. Neither is a verdict on a model
    that was finetuned again since, or a round that started from one.
    """
    slot, start = Slot(1, 1), None
    while (pruned := space.read(slot.record("prune"))) is not None:
        if start is not None and pruned.inputs["start"]["weights"] != start:
            return
        tuned = space.read(slot.record("finetune"))
        verdict = space.read(slot.record("verdict")) if tuned is not None else None
        if tuned and verdict and verdict.inputs["model"] != tuned.payload["model"]:
            verdict = None
        attempt = Attempt(slot, pruned, tuned, verdict)
        yield attempt
        if verdict is None:
            return
        if tuned and attempt.accepted:
            start = tuned.payload["model"]
        slot = after(attempt)


def after(attempt: Attempt) -> Slot:
    """Say where the next attempt goes: the next round, or the same one again."""
    slot = attempt.slot
    return Slot(slot.round + 1, 1) if attempt.accepted else Slot(slot.round, slot.attempt + 1)


def forget_after(space: Workspace, slot: Slot) -> None:
    """Remove the attempts that come after one that is about to be made anew."""
    rounds = space.folder / "rounds"
    for folder in sorted(rounds.glob("*/*")):
        if not (folder.is_dir() and folder.name.isdigit() and folder.parent.name.isdigit()):
            continue
        if Slot(int(folder.parent.name), int(folder.name)) > slot:
            space.clear(str(folder.relative_to(space.folder)))
