"""Turn ratios into how many channels of every atom are kept, and these into masks."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from prunella.coupling.arranging import Layout, settle
from prunella.coupling.counting import AtomKey, Cluster, nearest_counts
from prunella.errors import CouplingError
from prunella.plan import Groups, Scores, check_scores


class Chooser:
    """Which channels stay, once it is known how many: those with the best scores."""

    def __init__(self, groups: Groups, scores: Scores) -> None:
        check_scores(groups, scores)
        self.groups = groups
        self.layout = Layout(groups)
        self.clusters = self.layout.clusters
        self._values = np.zeros(groups.channels)
        for group in groups:
            self._values[group.start : group.start + group.channels] = scores.values[group.name]
        self._best = {
            id(c): tuple(self._in_order(a.channels) for a in c.atoms) for c in self.clusters
        }
        self._fitting: dict[tuple[int, bytes], np.ndarray | None] = {}

    def _in_order(self, channels: np.ndarray) -> np.ndarray:
        """Sort channels best first; of equal scores the earlier channel."""
        return np.asarray(channels[np.argsort(-self._values[channels], kind="stable")])

    def best(self, cluster: Cluster) -> tuple[np.ndarray, ...]:
        """List the channels of every atom of a cluster, best first."""
        return self._best[id(cluster)]

    def mask(self, counts: Sequence[np.ndarray]) -> np.ndarray:
        """Return the mask that keeps so many channels of every cluster's atoms, the best ones."""
        mask = np.ones(self.groups.channels, dtype=bool)
        for cluster, found in zip(self.clusters, counts, strict=True):
            for channels, count in zip(self.best(cluster), found.tolist(), strict=True):
                mask[channels[count:]] = False
        return mask

    def nearest(self, cluster: Cluster, ratios: Mapping[str, float]) -> np.ndarray:
        """Return how many channels of every atom are kept, as near to the ratios as can be."""
        asked = {name: ratios[name] for name in cluster.groups}
        counts = nearest_counts(cluster, asked)
        if not cluster.moved or keeps_all(cluster, counts):
            return counts
        # Not every width has a counterpart among the original's channels: look further and further
        # away from what was asked, a step of one channel on the widest axis at a time.
        step = 1 / int((cluster.axes @ cluster.sizes()).max(initial=1))
        shifts = [s * i * step for i in range(1, int(1 / step) + 1) for s in (1, -1)]
        for shift in [0.0, *shifts]:
            if shift:
                shifted = {name: min(max(r + shift, 0.0), 1.0) for name, r in asked.items()}
                counts = nearest_counts(cluster, shifted)
            found = self.settled(cluster, counts)
            if found is not None:
                return found
        raise CouplingError(
            f"no number of channels of {', '.join(cluster.groups[:3])} fits how they are cut and "
            "moved; exclude these modules"
        )

    def settled(self, cluster: Cluster, counts: np.ndarray) -> np.ndarray | None:
        """Return what the network makes of these counts, None if that does not fit."""
        key = id(cluster), counts.tobytes()
        if key not in self._fitting:
            self._fitting[key] = self._settle(cluster, counts)
        return self._fitting[key]

    def _settle(self, cluster: Cluster, counts: np.ndarray) -> np.ndarray | None:
        if keeps_all(cluster, counts):
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


def keeps_all(cluster: Cluster, counts: np.ndarray) -> bool:
    """Say whether counts cut nothing."""
    return bool((counts >= cluster.sizes()).all())
