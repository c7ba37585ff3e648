"""Which attempts of a work folder are of this run: what a kill left of an earlier one is not."""

from pathlib import Path

from prunella.pipeline.slots import Slot, attempts
from prunella.workspace import Workspace


def leave(space: Workspace, slot: Slot, start: str, model: str, *, judged: str = "") -> None:
    """Write the records of an attempt; `judged` names the model of its verdict if another's."""
    pruned = f"{model}, pruned"
    inputs = {"start": {"name": "any", "weights": start}}
    space.write(slot.record("prune"), inputs, {"model": pruned})
    space.write(slot.record("finetune"), {"pruned": pruned}, {"model": model})
    verdict = {"accepted": True, "reason": "no floor is set"}
    space.write(slot.record("verdict"), {"model": judged or model}, verdict)


def test_rounds_follow_one_another(tmp_path: Path) -> None:
    space = Workspace(tmp_path)
    leave(space, Slot(1, 1), "dense", "first")
    leave(space, Slot(2, 1), "first", "second")
    assert [(each.slot, each.accepted) for each in attempts(space)] == [
        (Slot(1, 1), True),
        (Slot(2, 1), True),
    ]


def test_a_verdict_on_a_model_that_was_replaced_is_none(tmp_path: Path) -> None:
    space = Workspace(tmp_path)
    leave(space, Slot(1, 1), "dense", "finetuned anew", judged="finetuned before")
    (only,) = attempts(space)
    assert only.tuned is not None
    assert only.verdict is None
    assert not only.accepted


def test_a_round_that_started_from_a_model_that_was_replaced_is_none(tmp_path: Path) -> None:
    space = Workspace(tmp_path)
    leave(space, Slot(1, 1), "dense", "finetuned anew")
    leave(space, Slot(2, 1), "finetuned before", "second")
    assert [each.slot for each in attempts(space)] == [Slot(1, 1)]
