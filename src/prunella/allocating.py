"""Decide how many channels each group loses, and which: groups + scores + budget -> `Plan`."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import numpy as np

from prunella.arranging import Layout, settle
from prunella.costs.ladders import Ladder, LadderCosts
from prunella.costs.predicted import mac_terms, param_terms, predict
from prunella.counting import AtomKey, Cluster, nearest_counts
from prunella.errors import BudgetError, ConfigError, CouplingError
from prunella.plan import Budget, Costs, Groups, Plan, Scores, nearest
from prunella.planning import make_plan, nothing_to_prune

_LEVELS = 32  # steps between keeping all of a cluster and keeping the least of it

Damage = Callable[[str, int], float]
"""Predicted loss of the metric when a group (name) keeps so many channels; >= 0, decreasing."""


def allocate(
    groups: Groups,
    scores: Scores,
    target: Budget | float | Mapping[str, float],
    damage: Damage | None = None,
) -> Plan:
    """Choose the channels to keep.

    Args:
        groups: The groups of a network.
        scores: Importance of every channel; the lowest go first.
        target: A `Budget` (what remains), or a ratio in [0, 1) of channels every group loses, or
            a ratio by group name (groups not named lose nothing).
        damage: Predicted loss of the metric by group and kept channels (`Sensitivity.damage`).
            With it, a budget is spent where the least damage is done per multiply-accumulate
            saved; without, every group loses the same share.

    Returns:
        A plan. Under a budget its costs are at most the budget.

    Raises:
        BudgetError: No plan fits; `reachable` is the smallest cost.
        NothingToPruneError: The plan would remove nothing.
        ConfigError: A ratio is out of range, or a group is unknown.
    """
    if not len(groups):
        raise nothing_to_prune(groups)
    chooser = _Chooser(groups, scores)
    if isinstance(target, Budget):
        mask = _fit(chooser, target, damage)
    else:
        ratios = _ratios(groups, target)
        mask = chooser.mask([chooser.nearest(cluster, ratios) for cluster in chooser.clusters])
    return make_plan(groups, mask, chooser.layout)


def _ratios(groups: Groups, target: float | Mapping[str, float]) -> dict[str, float]:
    if isinstance(target, Mapping):
        known = [group.name for group in groups]
        for name in target:
            if name not in known:
                raise ConfigError(f"no group called {name!r}{nearest(name, known)}")
        ratios = {name: float(target.get(name, 0.0)) for name in known}
    else:
        ratios = {group.name: float(target) for group in groups}
    for name, ratio in ratios.items():
        if not 0 <= ratio < 1:
            raise ConfigError(
                f"a ratio is the share of channels removed, 0 <= ratio < 1, got {ratio=} for "
                f"{name!r}"
            )
    return ratios


class _Chooser:
    """Turns ratios into how many channels of every atom are kept, and these into masks."""

    def __init__(self, groups: Groups, scores: Scores) -> None:
        self.groups = groups
        self.layout = Layout(groups)
        self.clusters = self.layout.clusters
        values = np.zeros(groups.channels)
        for group in groups:
            values[group.start : group.start + group.channels] = scores.values[group.name]
        self._rank = np.zeros(groups.channels, dtype=np.int64)  # by channel: its place in its atom
        for cluster in self.clusters:
            for atom in cluster.atoms:
                # Best first; of equal scores the earlier channel.
                best = atom.channels[np.argsort(-values[atom.channels], kind="stable")]
                self._rank[best] = np.arange(len(best))
        self._fitting: dict[tuple[int, bytes], np.ndarray | None] = {}

    def mask(self, counts: Sequence[np.ndarray]) -> np.ndarray:
        """Return the mask that keeps so many channels of every cluster's atoms, the best ones."""
        mask = np.ones(self.groups.channels, dtype=bool)
        for cluster, found in zip(self.clusters, counts, strict=True):
            for atom, count in zip(cluster.atoms, found.tolist(), strict=True):
                mask[atom.channels] = self._rank[atom.channels] < count
        return mask

    def nearest(self, cluster: Cluster, ratios: Mapping[str, float]) -> np.ndarray:
        """Return how many channels of every atom are kept, as near to the ratios as can be."""
        asked = {name: ratios[name] for name in cluster.groups}
        counts = nearest_counts(cluster, asked)
        if not cluster.moved or self._keeps_all(cluster, counts):
            return counts
        # Not every width has a counterpart among the original's channels: look further and further
        # away from what was asked, a step of one channel on the widest axis at a time.
        step = 1 / int((cluster.axes @ cluster.sizes()).max(initial=1))
        shifts = [s * i * step for i in range(1, int(1 / step) + 1) for s in (1, -1)]
        for shift in [0.0, *shifts]:
            if shift:
                shifted = {name: min(max(r + shift, 0.0), 1.0) for name, r in asked.items()}
                counts = nearest_counts(cluster, shifted)
            found = self._settled(cluster, counts)
            if found is not None:
                return found
        raise CouplingError(
            f"no number of channels of {', '.join(cluster.groups[:3])} fits how they are cut and "
            "moved; exclude these modules"
        )

    def _keeps_all(self, cluster: Cluster, counts: np.ndarray) -> bool:
        return bool((counts >= cluster.sizes()).all())

    def _settled(self, cluster: Cluster, counts: np.ndarray) -> np.ndarray | None:
        """Return what the network makes of these counts, None if that does not fit."""
        key = id(cluster), counts.tobytes()
        if key not in self._fitting:
            self._fitting[key] = self._settle(cluster, counts)
        return self._fitting[key]

    def _settle(self, cluster: Cluster, counts: np.ndarray) -> np.ndarray | None:
        if self._keeps_all(cluster, counts):
            return counts
        kept = [counts if c is cluster else c.sizes() for c in self.clusters]
        settled = settle(self.layout, self.mask(kept))
        asked: dict[AtomKey, int] = defaultdict(int)
        for atom, count in zip(cluster.atoms, counts.tolist(), strict=True):
            asked[atom.key] += count
        found = counts.copy()
        for i, atom in enumerate(cluster.atoms):
            if settled.get(atom.key, 0) != asked[atom.key]:
                found[i] = settled.get(atom.key, 0)
        fits = cluster.binds(found) and bool((found <= cluster.sizes()).all())
        return found if fits else None

    def levels(self, cluster: Cluster) -> np.ndarray:
        """List the counts between keeping all of a cluster and the least of it, each once."""
        steps = min(_LEVELS, max(atom.channels.size for atom in cluster.atoms) * len(cluster.atoms))
        levels: list[np.ndarray] = []
        for step in range(steps + 1):
            counts = self.nearest(cluster, dict.fromkeys(cluster.groups, step / steps))
            if not levels or counts.sum() < levels[-1].sum():
                levels.append(counts)
        return np.stack(levels)

    def ladder(self, cluster: Cluster, levels: np.ndarray) -> Ladder:
        """Say which channels of a cluster are kept at every level."""
        channels = np.concatenate([atom.channels for atom in cluster.atoms])
        counts = np.repeat(levels, cluster.sizes(), axis=1)
        return Ladder(channels, self._rank[channels] < counts)


def _fit(chooser: _Chooser, budget: Budget, damage: Damage | None) -> np.ndarray:
    groups = chooser.groups
    dense = asdict(predict(groups, np.ones(groups.channels, dtype=bool)))
    limits = budget.resolve(Costs(**dense))
    levels = [chooser.levels(cluster) for cluster in chooser.clusters]
    smallest = asdict(predict(groups, chooser.mask([found[-1] for found in levels])))
    for name, limit in limits.items():
        least = smallest[name]
        if least > limit:
            raise BudgetError(
                f"no plan leaves at most {limit:,} {name} of {dense[name]:,}: the smallest "
                f"possible leaves {least:,} ({least / dense[name]:.1%}). Raise the budget, "
                "or exclude less",
                reachable=least,
            )
    bill = _Bill(chooser, levels, limits)
    order = _evenly(levels) if damage is None else _by_damage(chooser, levels, bill, damage)
    at = _spend(bill, len(levels), order)
    return chooser.mask([found[i] for found, i in zip(levels, at, strict=True)])


class _Bill:
    """What the budget limits, while clusters go from level to level."""

    def __init__(
        self, chooser: _Chooser, levels: Sequence[np.ndarray], limits: Mapping[str, int]
    ) -> None:
        groups = chooser.groups
        ladders = [chooser.ladder(c, n) for c, n in zip(chooser.clusters, levels, strict=True)]
        terms = {"macs": mac_terms, "params": param_terms}
        units = {"macs": groups.graph.samples, "params": 1}
        self._limits = {name: (limit + 1) * units[name] - 1 for name, limit in limits.items()}
        self.costs = {
            name: LadderCosts(terms[name](groups), ladders, groups.channels) for name in limits
        }

    def set(self, at: Sequence[int]) -> None:
        """Put every cluster at a level."""
        for costs in self.costs.values():
            costs.set(at)

    def move(self, cluster: int, level: int) -> None:
        """Put one cluster at another level."""
        for costs in self.costs.values():
            costs.move(cluster, level)

    def fits(self) -> bool:
        """Say whether the budget is kept."""
        return all(costs.total() <= self._limits[name] for name, costs in self.costs.items())


def _evenly(levels: Sequence[np.ndarray]) -> list[int]:
    """Order the steps so that at any time every cluster has lost about the same share."""
    steps = [
        (i / (len(ladder) - 1), c) for c, ladder in enumerate(levels) for i in range(1, len(ladder))
    ]
    return [c for _, c in sorted(steps)]


def _by_damage(
    chooser: _Chooser, levels: Sequence[np.ndarray], bill: _Bill, damage: Damage
) -> list[int]:
    """Order the steps by damage per cost saved, least first, given the steps before.

    A cluster may take several levels at once where that is the better bargain (the lower convex
    hull of its curve), so a bump in a curve does not block what lies behind it.
    """
    costs = bill.costs.get("macs") or bill.costs["params"]
    curves = [_curve(c, found, damage) for c, found in zip(chooser.clusters, levels, strict=True)]
    at = [0] * len(levels)
    prices = [0.0] * len(levels)
    jumps = [0] * len(levels)
    changed = list(range(len(levels)))
    order: list[int] = []
    while left := [c for c, found in enumerate(levels) if at[c] + 1 < len(found)]:
        for c in set(left).intersection(changed):
            saved = np.maximum(costs.savings(c), 1e-9)
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


def _curve(cluster: Cluster, levels: np.ndarray, damage: Damage) -> np.ndarray:
    """Predict the damage at every level of one cluster."""
    of_group = np.array([[atom.group == name for atom in cluster.atoms] for name in cluster.groups])
    kept = levels @ of_group.T
    return np.array(
        [
            sum(damage(g, n) for g, n in zip(cluster.groups, row, strict=True))
            for row in kept.tolist()
        ]
    )


def _spend(bill: _Bill, clusters: int, order: list[int]) -> list[int]:
    """Take as few steps of the order as fit the budget, then give back what was too much."""
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        bill.set(_after(order[:middle], clusters))
        if bill.fits():
            high = middle
        else:
            low = middle + 1
    at = _after(order[:high], clusters)
    bill.set(at)
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
