"""Decide how many channels each group loses, and which: groups + scores + budget -> `Plan`."""

from collections.abc import Callable, Mapping
from dataclasses import asdict

import numpy as np

from prunella.arranging import settle
from prunella.costs.ladders import LadderCosts
from prunella.costs.predicted import mac_terms, param_terms, predict
from prunella.counting import Cluster, clusters, nearest_counts
from prunella.errors import BudgetError, ConfigError, CouplingError
from prunella.plan import Budget, Costs, Groups, Plan, Scores, nearest
from prunella.planning import kept_of, make_plan, nothing_to_prune
from prunella.resizing import Flow, flow_of

_LEVELS = 32  # steps between keeping all of a cluster and keeping the least of it

Ladder = list[np.ndarray]
"""The masks of one cluster between keeping all of it and the least of it."""

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
        mask = chooser.mask(_ratios(groups, target))
    return make_plan(groups, mask)


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
    """Turns ratios into masks: counts by cluster, then the best channels of every atom."""

    def __init__(self, groups: Groups, scores: Scores) -> None:
        self.groups = groups
        self.clusters = clusters(groups)
        self._flow = flow_of(groups) if any(c.moved for c in self.clusters) else None
        values = np.zeros(groups.channels)
        for group in groups:
            values[group.start : group.start + group.channels] = scores.values[group.name]
        # Best first; of equal scores the earlier channel.
        self._ranked = {
            id(atom): atom.channels[np.argsort(-values[atom.channels], kind="stable")]
            for cluster in self.clusters
            for atom in cluster.atoms
        }

    def mask(self, ratios: Mapping[str, float]) -> np.ndarray:
        mask = np.ones(self.groups.channels, dtype=bool)
        for cluster in self.clusters:
            mask &= self.nearest(cluster, {name: ratios[name] for name in cluster.groups})
        return mask

    def nearest(self, cluster: Cluster, ratios: Mapping[str, float]) -> np.ndarray:
        """Return the mask of one cluster that comes nearest to the ratios."""
        mask = self._best(cluster, nearest_counts(cluster, ratios))
        if self._flow is None or not cluster.moved or mask.all():
            return mask
        # Not every width has a counterpart among the original's channels: look further and further
        # away from what was asked, a step of one channel on the widest axis at a time.
        step = 1 / int((cluster.axes @ cluster.sizes()).max(initial=1))
        shifts = [0.0, *(s * i * step for i in range(1, int(1 / step) + 1) for s in (1, -1))]
        for shift in shifts:
            shifted = {name: min(max(r + shift, 0.0), 1.0) for name, r in ratios.items()}
            found = self._settled(self._flow, cluster, nearest_counts(cluster, shifted))
            if found is not None:
                return found
        raise CouplingError(
            f"no number of channels of {', '.join(cluster.groups[:3])} fits how they are cut and "
            "moved; exclude these modules"
        )

    def _settled(self, flow: Flow, cluster: Cluster, counts: np.ndarray) -> np.ndarray | None:
        mask = self._best(cluster, counts)
        if mask.all():
            return mask
        settled = settle(flow, mask)
        counts = np.array([settled.get(atom.key, 0) for atom in cluster.atoms])
        fits = cluster.binds(counts) and bool((counts <= cluster.sizes()).all())
        return self._best(cluster, counts) if fits else None

    def _best(self, cluster: Cluster, counts: np.ndarray) -> np.ndarray:
        mask = np.ones(self.groups.channels, dtype=bool)
        for atom, count in zip(cluster.atoms, counts, strict=True):
            mask[self._ranked[id(atom)][count:]] = False
        return mask

    def levels(self, cluster: Cluster) -> Ladder:
        """List the masks between keeping all of a cluster and the least of it, each once."""
        steps = min(_LEVELS, max(atom.channels.size for atom in cluster.atoms) * len(cluster.atoms))
        masks: Ladder = []
        for step in range(steps + 1):
            mask = self.nearest(cluster, dict.fromkeys(cluster.groups, step / steps))
            if not masks or mask.sum() < masks[-1].sum():
                masks.append(mask)
        return masks


def _fit(chooser: _Chooser, budget: Budget, damage: Damage | None) -> np.ndarray:
    groups = chooser.groups
    dense = asdict(predict(groups, np.ones(groups.channels, dtype=bool)))
    limits = budget.resolve(Costs(**dense))
    levels = [chooser.levels(cluster) for cluster in chooser.clusters]
    smallest = asdict(predict(groups, _combine(levels, [len(ladder) - 1 for ladder in levels])))
    for name, limit in limits.items():
        least = smallest[name]
        if least > limit:
            raise BudgetError(
                f"no plan leaves at most {limit:,} {name} of {dense[name]:,}: the smallest "
                f"possible leaves {least:,} ({least / dense[name]:.1%}). Raise the budget, "
                "or exclude less",
                reachable=least,
            )
    order = _evenly(levels) if damage is None else _by_damage(chooser, levels, limits, damage)
    return _combine(levels, _spend(groups, levels, limits, order))


def _combine(levels: list[Ladder], at: list[int]) -> np.ndarray:
    mask: np.ndarray = np.logical_and.reduce([lad[i] for lad, i in zip(levels, at, strict=True)])
    return mask


def _fits(groups: Groups, mask: np.ndarray, limits: Mapping[str, int]) -> bool:
    costs = asdict(predict(groups, mask))
    return all(costs[name] <= limit for name, limit in limits.items())


def _evenly(levels: list[Ladder]) -> list[int]:
    """Order the steps so that at any time every cluster has lost about the same share."""
    steps = [
        (i / (len(ladder) - 1), c) for c, ladder in enumerate(levels) for i in range(1, len(ladder))
    ]
    return [c for _, c in sorted(steps)]


def _by_damage(
    chooser: _Chooser, levels: list[Ladder], limits: Mapping[str, int], damage: Damage
) -> list[int]:
    """Order the steps by damage per cost saved, least first, given the steps before.

    A cluster may take several levels at once where that is the better bargain (the lower convex
    hull of its curve), so a bump in a curve does not block what lies behind it.
    """
    terms = mac_terms(chooser.groups) if "macs" in limits else param_terms(chooser.groups)
    curves = [
        _curve(chooser, cluster, ladder, damage)
        for cluster, ladder in zip(chooser.clusters, levels, strict=True)
    ]
    ladders = LadderCosts(terms, levels)
    at = [0] * len(levels)
    order: list[int] = []
    while True:
        best: tuple[float, int, int] | None = None
        for c, ladder in enumerate(levels):
            if at[c] + 1 == len(ladder):
                continue
            saved = np.maximum(ladders.savings(at, c), 1e-9)
            price = (curves[c][at[c] + 1 :] - curves[c][at[c]]) / saved
            j = int(price.argmin())
            if best is None or price[j] < best[0]:
                best = (float(price[j]), c, j + 1)
        if best is None:
            return order
        _, c, jump = best
        order += [c] * jump
        at[c] += jump
        if _fits(chooser.groups, _combine(levels, at), limits):
            return order


def _curve(chooser: _Chooser, cluster: Cluster, ladder: Ladder, damage: Damage) -> np.ndarray:
    """Predict the damage at every level of one cluster."""
    found = [chooser.groups[name] for name in cluster.groups]
    return np.array([sum(damage(g.name, len(kept_of(g, m))) for g in found) for m in ladder])


def _spend(
    groups: Groups, levels: list[Ladder], limits: Mapping[str, int], order: list[int]
) -> list[int]:
    """Take as few steps of the order as fit the budget, then give back what was too much."""
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if _fits(groups, _combine(levels, _after(order[:middle], len(levels))), limits):
            high = middle
        else:
            low = middle + 1
    at = _after(order[:high], len(levels))
    for c in reversed(order[:high]):
        at[c] -= 1
        if not _fits(groups, _combine(levels, at), limits):
            at[c] += 1
    return at


def _after(steps: list[int], n: int) -> list[int]:
    counts: list[int] = np.bincount(np.array(steps, dtype=int), minlength=n).tolist()
    return counts
