"""Plans to time: widths all over the place, on blocks and off them."""

from collections.abc import Iterator, Sequence

import numpy as np

from prunella.allocating import allocate
from prunella.allocating.planning import mask_of
from prunella.costs.widths import Width, lengths
from prunella.errors import ConfigError, CouplingError, NothingToPruneError
from prunella.plan import Groups, Plan, Scores

_BLOCKS = (1, 4, 8, 16)
_MOST = 0.9
_TRIES = 5
_FAILED = 200  # draws in a row that are no plan


def draw(groups: Groups, seed: int) -> Iterator[Plan]:
    """Draw plans without end; the same seed, the same plans.

    Every plan has a ratio of its own, around which those of its groups lie, and either one block
    that all widths are multiples of, or one for each group: where widths are ragged everywhere, a
    kernel for whole blocks is never seen.
    """
    rng = np.random.default_rng(seed)
    names = [group.name for group in groups]
    scores = _first(groups)
    failed = 0
    while True:
        middle = rng.uniform(0, _MOST)
        ratios = (middle + rng.normal(0, 0.25, len(names))).clip(0, _MOST)
        alike = rng.random() < 0.5
        blocks = rng.choice(_BLOCKS[1:], 1 if alike else len(names))
        if not alike:
            blocks = np.where(rng.random(len(names)) < 0.4, 1, blocks)
        of = dict(zip(names, np.broadcast_to(blocks, len(names)).tolist(), strict=True))
        try:
            plan = allocate(
                groups, scores, dict(zip(names, ratios.tolist(), strict=True)), multiple_of=of
            )
        except (NothingToPruneError, CouplingError):
            failed += 1
            if failed > _FAILED:
                raise
            continue
        failed = 0
        yield plan


def telling(groups: Groups, found: Sequence[Width], count: int, seed: int) -> list[Plan]:
    """Draw plans in which no two widths are alike, as far as can be: they tell widths apart."""
    rng = np.random.default_rng(seed)
    scores = _first(groups)
    chosen: list[Plan] = []
    seen = lengths(tuple(found), np.ones(groups.channels, dtype=bool))[None]
    for _ in range(count):
        best: tuple[int, Plan, np.ndarray] | None = None
        for _ in range(_TRIES):
            ratios = {group.name: float(rng.uniform(0.05, 0.6)) for group in groups}
            try:
                plan = allocate(groups, scores, ratios)
            except (NothingToPruneError, CouplingError):
                continue
            rows = np.vstack([seen, lengths(tuple(found), mask_of(groups, plan.channels))])
            apart = len(np.unique(rows / rows[0], axis=1).T)
            if best is None or apart > best[0]:
                best = apart, plan, rows
        if best is None:
            raise ConfigError(
                "no networks with other widths could be made to time; exclude fewer modules"
            )
        chosen.append(best[1])
        seen = best[2]
    return chosen


def _first(groups: Groups) -> Scores:
    """Keep the first channels: which ones changes no time."""
    return Scores("number", {g.name: -np.arange(g.channels, dtype=float) for g in groups})
