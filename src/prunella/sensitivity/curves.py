"""What each group is worth: the metric with that group alone pruned, ratio by ratio."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from scipy.optimize import isotonic_regression

from prunella.errors import ConfigError, WorkspaceError
from prunella.plan import nearest

SCHEMA = 1
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Sensitivity:
    """The metric of the task with one group alone pruned.

    `curves[group][i]` is the metric with `removed(ratios[i], channels[group])` of that group's
    lowest-scored channels zeroed and everything else dense; `baseline` is the dense model's. It is
    None where the metric was no finite number or the model raised, which counts as `worst`.
    """

    metric: str
    higher_is_better: bool
    baseline: float
    ratios: tuple[float, ...]
    curves: Mapping[str, tuple[float | None, ...]]
    channels: Mapping[str, int]

    def __post_init__(self) -> None:
        read_ratios(self.ratios)
        for name, curve in self.curves.items():
            if len(curve) != len(self.ratios) or self.channels.get(name, 0) < 1:
                raise ConfigError(
                    f"the sensitivity of `{name}` needs one value for each of the "
                    f"{len(self.ratios)} ratios and the group's number of channels, got "
                    f"{len(curve)} values and {self.channels.get(name)} channels"
                )

    @cached_property
    def worst(self) -> float:
        """What counts where the metric was no finite number.

        That is the worst that was seen of any group, and at least a loss as large as the baseline:
        nothing of an accuracy is left, an error is twice as large.

        Example:
            >>> Sensitivity("accuracy", True, 0.9, (0.5,), {"a": (None,)}, {"a": 8}).worst
            0.0
        """
        sign = 1.0 if self.higher_is_better else -1.0
        seen = [value for curve in self.curves.values() for value in curve if value is not None]
        return self.baseline - sign * largest(
            self.baseline, [sign * (self.baseline - value) for value in seen]
        )

    @cached_property
    def values(self) -> dict[str, tuple[float, ...]]:
        """The curves as they count: `worst` in place of None."""
        return {
            name: tuple(self.worst if value is None else value for value in curve)
            for name, curve in self.curves.items()
        }

    @property
    def gaps(self) -> str:
        """Where the metric was no finite number, in words; "" where it always was one."""
        missing = {
            name: [
                f"{ratio:.4g}"
                for ratio, value in zip(self.ratios, self.curves[name], strict=True)
                if value is None
            ]
            for name in self.curves
        }
        found = [f"`{name}` at {', '.join(at)}" for name, at in missing.items() if at]
        if not found:
            return ""
        more = f" and {len(found) - 5} more groups" if len(found) > 5 else ""
        return (
            f"the metric `{self.metric}` is no finite number with some groups cut, or the model "
            f"raises, which counts as the worst, {self.worst:.4g}: {'; '.join(found[:5])}{more}"
        )

    def damage(self, group: str, kept_channels: int) -> float:
        """Predict how much of the metric is lost when `group` keeps so many of its channels.

        A measured improvement counts as no loss; the measured losses are made non-decreasing in
        the number of removed channels (least squares), joined linearly from 0 at nothing removed,
        and continued past the last one by its slope or the average slope, the steeper.

        Args:
            group: Name of an analysed group.
            kept_channels: How many channels remain, from 0 to all.

        Returns:
            The loss in units of the metric, >= 0, never falling as channels are removed.

        Raises:
            ConfigError: The group was not analysed, or has no such number of channels.
        """
        if group not in self.curves:
            raise ConfigError(
                f"the sensitivity knows no group {group!r}{nearest(group, self.curves)}; it was "
                "made for another model or another `exclude`: run the analysis again"
            )
        channels = self.channels[group]
        if not 0 <= kept_channels <= channels:
            raise ConfigError(
                f"`{group}` has {channels} channels, so it keeps 0 to {channels}, "
                f"got {kept_channels=}"
            )
        shares, losses = self._fits[group]
        share = (channels - kept_channels) / channels
        if share <= shares[-1]:
            return float(np.interp(share, shares, losses))
        if len(shares) == 1:
            return 0.0  # nothing was ever removed: nothing is known
        last = (losses[-1] - losses[-2]) / (shares[-1] - shares[-2])
        slope = max(last, losses[-1] / shares[-1])
        return float(losses[-1] + slope * (share - shares[-1]))

    @cached_property
    def _fits(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Removed shares (ascending, from 0) and the non-decreasing losses there, per group."""
        return {name: self._fit(name) for name in self.curves}

    def _fit(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        sign = 1.0 if self.higher_is_better else -1.0
        channels = self.channels[name]
        losses = {
            removed(ratio, channels) / channels: max(0.0, sign * (self.baseline - value))
            for ratio, value in zip(self.ratios, self.values[name], strict=True)
        }
        losses.pop(0.0, None)
        shares = np.array([0.0, *losses])
        if not losses:
            return shares, np.zeros(1)
        fitted = isotonic_regression(list(losses.values())).x
        return shares, np.concatenate([[0.0], fitted])

    def to_json(self) -> str:
        """Write as JSON; every number survives exactly."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> "Sensitivity":
        """Read what `to_json` wrote.

        Raises:
            WorkspaceError: The text is not a sensitivity, or of another schema.
        """
        try:
            data = json.loads(text)
            if data.pop("schema") != SCHEMA:
                raise WorkspaceError(
                    f"this sensitivity has another schema than {SCHEMA}. Run the analysis again"
                )
            return Sensitivity(
                metric=str(data["metric"]),
                higher_is_better=bool(data["higher_is_better"]),
                baseline=float(data["baseline"]),
                ratios=tuple(float(ratio) for ratio in data["ratios"]),
                curves={
                    str(name): tuple(None if value is None else float(value) for value in curve)
                    for name, curve in data["curves"].items()
                },
                channels={str(name): int(count) for name, count in data["channels"].items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError) as cause:
            raise WorkspaceError(
                f"this is not a sensitivity written by Prunella ({type(cause).__name__}: {cause}). "
                "Run the analysis again"
            ) from cause


def removed(ratio: float, channels: int) -> int:
    """Count the channels that go at a ratio: what stays is rounded as by `allocate`, at least 1.

    Example:
        >>> removed(0.25, 10), removed(0.9, 4), removed(0.1, 4)
        (2, 3, 0)
    """
    return channels - max(1, math.floor((1 - ratio) * channels + 0.5))


def largest(baseline: float, losses: Iterable[float]) -> float:
    """Say what is lost, at least, where the metric is no finite number; see `Sensitivity.worst`."""
    return max([abs(baseline), *losses]) or 1.0


def read_ratios(given: Iterable[float]) -> tuple[float, ...]:
    """Read ascending shares in (0, 1).

    Raises:
        ConfigError: They are something else.
    """
    try:
        ratios = () if isinstance(given, str) else tuple(float(ratio) for ratio in given)
    except (TypeError, ValueError):
        ratios = ()
    ascending = all(a < b for a, b in pairwise(ratios))
    if not ratios or not ascending or not (ratios[0] > 0 and ratios[-1] < 1):
        raise ConfigError(
            "ratios are fractions of channels removed, ascending, each in (0, 1), got "
            f"ratios={given!r}; write them as in (0.25, 0.5)"
        )
    return ratios
