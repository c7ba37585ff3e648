"""Write a choice of channels down as a `Plan`: what every tensor keeps, and what it then costs."""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from prunella.costs.predicted import predict
from prunella.coupling.arranging import Layout, arrange
from prunella.errors import NothingToPruneError
from prunella.plan import Group, Groups, Indices, Plan


def make_plan(groups: Groups, mask: np.ndarray, layout: Layout | None = None) -> Plan:
    """Make the plan that keeps the channels of `mask`.

    Args:
        groups: The groups of a network.
        mask: For every channel number, whether it is kept: bool, `[groups.channels]`.
        layout: The layout of the groups, where it is at hand.

    Raises:
        NothingToPruneError: The mask keeps everything.
    """
    if mask.all():
        raise nothing_to_prune(groups)
    kept: dict[str, dict[int, Indices]] = defaultdict(dict)
    for axis, positions in arrange(layout or Layout(groups), mask).items():
        if positions.size < groups.axes[axis].size or (np.diff(positions) != 1).any():
            kept[axis.tensor][axis.dim] = _indices(positions)
    attributes: dict[str, dict[str, int]] = defaultdict(dict)
    for follower in groups.followers:
        found = np.append(mask, True)[follower.channels]
        if not found.all():
            attributes[follower.module][follower.attribute] = int(found.sum()) // follower.per
    return Plan(
        digest=groups.graph.digest,
        channels={group.name: kept_of(group, mask) for group in groups},
        sizes={group.name: group.channels for group in groups},
        kept=dict(kept),
        attributes=dict(attributes),
        before=predict(groups, np.ones_like(mask)),
        after=predict(groups, mask),
        example=groups.graph.example,
        form=groups.form,
        marked=bool(groups.marked),
        heads=groups.heads,
    )


def kept_of(group: Group, mask: np.ndarray) -> tuple[int, ...]:
    """List the channels of one group that a mask keeps."""
    return tuple(np.flatnonzero(mask[group.start : group.start + group.channels]).tolist())


def mask_of(groups: Groups, channels: Mapping[str, Indices]) -> np.ndarray:
    """Return the mask that keeps the listed channels of each group, and all of the others."""
    mask = np.ones(groups.channels, dtype=bool)
    for group in groups:
        if group.name in channels:
            mask[group.start : group.start + group.channels] = False
            mask[group.start + np.array(channels[group.name], dtype=int)] = True
    return mask


def nothing_to_prune(groups: Groups) -> NothingToPruneError:
    """Say that nothing would be removed, and why."""
    if len(groups):
        few = ", ".join(f"{g.name} ({g.channels})" for g in list(groups)[:5])
        return NothingToPruneError(
            f"the plan removes nothing: the ratio or budget asks for less than one channel of any "
            f"group that may be cut ({few}, ...); ask for more"
        )
    reasons = "\n  ".join(groups.why_frozen()[:20]) or "the network has no weights with channels"
    return NothingToPruneError(f"nothing can be pruned, every group is frozen:\n  {reasons}")


def _indices(positions: np.ndarray) -> Indices:
    rows = positions.tolist()
    return tuple(tuple(row) for row in rows) if positions.ndim == 2 else tuple(rows)
