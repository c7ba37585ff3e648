"""Spend a budget step by step: every group alike, or where it does least damage."""

from collections.abc import Sequence

import numpy as np

from prunella.allocating.bill import Bill


def evenly(shares: Sequence[np.ndarray], over: Sequence[np.ndarray]) -> list[int]:
    """Order the steps so that at any time every cluster has lost about the same share.

    Args:
        shares: The share of channels that is cut at every level, by cluster.
        over: How much of it should not be, if the budget can be kept otherwise.
    """
    steps = [
        (float(much[i]), float(share[i]), c)
        for c, (share, much) in enumerate(zip(shares, over, strict=True))
        for i in range(1, len(share))
    ]
    return [c for _, _, c in sorted(steps)]


def by_damage(curves: Sequence[np.ndarray], bill: Bill) -> list[int]:
    """Order the steps by damage per cost saved, least first, given the steps before.

    A cluster may take several levels at once where that is the better bargain (the lower convex
    hull of its curve), so a bump in a curve does not block what lies behind it.
    """
    at = [0] * len(curves)
    bill.put(at)
    costs = bill.costs
    worth = 1 / (costs.totals() - bill.limits)  # of a unit of each cost: the more, the scarcer
    prices = [0.0] * len(curves)
    jumps = [0] * len(curves)
    changed = list(range(len(curves)))
    order: list[int] = []
    while left := [c for c, found in enumerate(curves) if at[c] + 1 < len(found)]:
        for c in set(left).intersection(changed):
            along = worth @ costs.along(c)
            saved = np.maximum(along[at[c]] - along[at[c] + 1 :], 1e-12)
            price = (curves[c][at[c] + 1 :] - curves[c][at[c]]) / saved
            jumps[c] = int(price.argmin()) + 1
            prices[c] = float(price.min())
        best = min(left, key=prices.__getitem__)
        order += [best] * jumps[best]
        at[best] += jumps[best]
        bill.move(best, at[best])
        if bill.fits():
            break
        changed = costs.neighbours(best)
    return order


def spend(bill: Bill, clusters: int, order: list[int]) -> list[int]:
    """Take as few steps of the order as fit the budget, then give back what was too much."""
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        bill.put(_after(order[:middle], clusters))
        if bill.fits():
            high = middle
        else:
            low = middle + 1
    at = _after(order[:high], clusters)
    bill.put(at)
    for c in reversed(order[:high]):
        bill.move(c, at[c] - 1)
        if bill.fits():
            at[c] -= 1
        else:
            bill.move(c, at[c])
    return at


def _after(steps: list[int], n: int) -> list[int]:
    counts: list[int] = np.bincount(np.array(steps, dtype=int), minlength=n).tolist()
    return counts
