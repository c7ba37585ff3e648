"""What a latency model says of the network that pruning left, in that network's own widths."""

from dataclasses import replace

import numpy as np

from prunella.costs.timed import LatencyModel, Part, Region, digest_of
from prunella.costs.widths import PLAIN, Step, Width, widths
from prunella.plan import Groups, Plan

_GONE = -2


def remaining(model: LatencyModel, dense: Groups, pruned: Groups, plan: Plan) -> LatencyModel:
    """Write the latency model of a network down for a pruned one, which need not be measured again.

    It says of every plan of the pruned network what it says of both plans, one after the other, of
    the dense one. The time of the dense network stays what budgets are relative to.

    Args:
        model: Of the dense network.
        dense: The groups of that.
        pruned: The groups of what is left.
        plan: From the one to the other.
    """
    assert model.digest == digest_of(dense), "the latency model is that of the dense network"
    number = _renumbered(dense, pruned, plan)
    before, after = widths(dense), widths(pruned)
    index = {width.channels.tobytes(): i for i, width in enumerate(after)}
    left = [_kept(width, number) for width in before]

    def carried(part: Part) -> Part:
        ms, found = part.ms, list[tuple[int, Step]]()
        for w, step in zip(part.widths, part.steps, strict=True):
            at = index.get(left[w].tobytes())
            if at is not None and (step == PLAIN or after[at].alone):
                found.append((at, step))
                continue
            long = int(step(np.array(len(left[w]))))
            if at is None:  # nothing can be cut from it any more
                ms *= long
            else:  # several groups share it by now: steps cannot be told by level
                ms *= long / max(len(left[w]), 1)
                found.append((at, PLAIN))
        return Part(ms, tuple(w for w, _ in found), tuple(step for _, step in found))

    regions = tuple(
        Region(region.name, region.op, tuple(map(carried, region.parts)))
        for region in model.regions
    )
    return replace(model, digest=digest_of(pruned), regions=regions)


def _kept(width: Width, number: np.ndarray) -> np.ndarray:
    found = number[width.channels]
    return np.sort(found[found != _GONE])


def _renumbered(dense: Groups, pruned: Groups, plan: Plan) -> np.ndarray:
    """Return the pruned network's number of every channel of the dense one.

    It is -1 for what is never cut, as in both: of an axis that is down to one channel, say, which
    is none to a graph.
    """
    number = np.full(dense.channels + 1, _GONE, dtype=np.int64)
    number[-1] = -1
    for axis, old in dense.axes.items():
        kept = plan.kept.get(axis.tensor, {}).get(axis.dim)
        if kept is not None:
            old = np.take_along_axis(old, np.array(kept, dtype=np.int64), -1)
        new = pruned.axes.get(axis)
        if new is None or new.shape != old.shape:
            new = np.maximum(number[old], -1)
        number[old] = new
    return number
