"""Compare the library's groups with what an experiment finds."""

import torch
from torch import nn

import prunella
from prunella.errors import NothingToPruneError
from tests import oracle


def compare_with_experiment(
    model: nn.Module,
    groups: prunella.Groups,
    inputs: tuple[torch.Tensor, ...],
    keywords: dict[str, torch.Tensor],
) -> int:
    """Assert that channels a NaN connects are one unit, and that a unit has no more than those."""
    found, stuck = oracle.poisoned_units(model, inputs, keywords)
    owner = library_slots(model, groups)
    checked = 0
    for unit in found:
        known = {owner[slot] for slot in unit if slot in owner}
        free = not any(frozen for _, frozen in known)
        if unit & stuck:
            assert not free or not known, f"{sorted(unit)} reaches an output, and is not frozen"
        elif free and known:
            assert len({channel for channel, _ in known}) == 1, f"{sorted(unit)} are not together"
            checked += 1
    units: dict[int, set[oracle.Slot]] = {}
    for slot, (channel, frozen) in owner.items():
        if not frozen:
            units.setdefault(channel, set()).add(slot)
    by_slot = {slot: i for i, unit in enumerate(found) for slot in unit}
    bound = {c for block in groups.blocks for c in block.rows.reshape(-1).tolist()}
    for channel, slots in units.items():
        together = {by_slot[slot] for slot in slots if slot in by_slot}
        if channel not in bound:
            assert len(together) <= 1, f"{sorted(slots)} are cut together without need"
    return checked


def library_slots(
    model: nn.Module, groups: prunella.Groups
) -> dict[tuple[str, oracle.Slot], tuple[int, bool]]:
    """Say of every slot of the experiment which channel (number) it is, and if it is frozen."""
    modules = dict(model.named_modules())
    owner: dict[tuple[str, oracle.Slot], tuple[int, bool]] = {}
    for group in (*groups, *groups.frozen):
        for axis, positions in group.axes.items():
            name, _, leaf = axis.tensor.rpartition(".")
            module = modules[name]
            if leaf != "weight" or isinstance(module, nn.PReLU):
                continue
            kind = "out" if axis.dim == 0 else "in"
            divide = 1
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                kind = "norm"
            elif isinstance(module, nn.Conv2d) and module.groups > 1:
                if module.groups == module.in_channels:
                    kind, divide = "norm", module.out_channels // module.in_channels
                elif axis.dim == 1:
                    continue  # positions within a conv group
            for channel, row in enumerate(positions):
                for position in row.reshape(-1).tolist():
                    slot = (kind, (name, position // divide))
                    owner[slot] = (group.start + channel, bool(group.frozen))
    return owner


def check_stays_or_is_right(model: nn.Module, image: torch.Tensor) -> None:
    """Assert that the first layer's channels stay, with the operator named, or are cut rightly."""
    try:
        result = prunella.prune(model, image, ratio=0.5)
    except NothingToPruneError:
        groups = prunella.couple(prunella.trace(model, image))
        axis = prunella.Axis("stem.0.weight", 0)
        reasons = [r for g in groups.frozen if axis in g.axes for r in g.frozen]
        assert reasons, "frozen without a reason"
        assert all(r.reason and r.op for r in reasons)
        assert not any("no rule" in r.reason for r in reasons if r.op.startswith("aten"))
        return
    if result.plan.marked:  # statistics over channels: what was certified, statistics included
        assert result.certificate.error < 1e-12
    elif result.form == "class":
        oracle.check_pruned(model, result.plan, result.model, (image,), {})
    else:
        masked = oracle.masked(model, result.plan)
        found = [oracle.outputs(m, (image,), {}) for m in (result.model, masked)]
        assert oracle.difference(*found) < 1e-9
