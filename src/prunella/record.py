"""What a run did, as one frozen value: all that the report shows, and nothing that is a tensor."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from prunella.errors import WorkspaceError

SCHEMA = 1

Outcome = Literal["done", "floor", "missed", "partial"]


@dataclass(frozen=True, slots=True)
class LatencyRecord:
    """Measured milliseconds of one forward of the example inputs: median, 10th, 90th percentile."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int


@dataclass(frozen=True, slots=True)
class LatencyBudgetRecord:
    """A budget on time: what was asked, what was predicted of the model, what it got.

    `asked` is as the user wrote it, `limit_ms` what that is on `runtime`. `got_ms` is told by runs
    beside the dense model's, so it is what the model takes on a quiet machine. `kept` is None where
    the limit is exceeded, but not by more than the noise. `error` is the median error of what was
    predicted of networks that the latency model had not seen.
    """

    runtime: str
    asked: float | str
    limit_ms: float
    predicted_ms: float
    got_ms: float
    kept: bool | None
    error: float


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """One model's figures; `valid` and `test` are the task's metric on those splits."""

    macs: int
    params: int
    valid: float | None = None
    test: float | None = None
    latency: LatencyRecord | None = None


@dataclass(frozen=True, slots=True)
class SensitivityRecord:
    """The metric with one group alone pruned: per group name one value at each ratio removed.

    None is where the metric was no finite number.
    """

    metric: str
    higher_is_better: bool
    baseline: float
    ratios: tuple[float, ...]
    curves: Mapping[str, tuple[float | None, ...]]
    channels: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """How many of a group's dense channels a plan keeps."""

    name: str
    channels: int
    kept: int


@dataclass(frozen=True, slots=True)
class FrozenRecord:
    """A group that may not be cut, and every reason, each with its operator and module."""

    name: str
    channels: int
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One epoch of finetuning, 1-based; `metric` is on the valid split, None if not judged."""

    epoch: int
    loss: float | None
    metric: float | None


@dataclass(frozen=True, slots=True)
class ExperimentRecord:
    """One finetuning experiment: the settings tried, what came of it, its epochs.

    `state` is "complete", "stopped" (hopeless, ended early) or "failed", `reason` why.
    """

    number: int
    settings: Mapping[str, Any]
    state: str
    metric: float | None
    epochs: tuple[EpochRecord, ...]
    seconds: float
    best: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One try at a round: prune to `target`, then finetune.

    `target` maps "macs" and "params" to the share of the dense model that may remain; `macs` and
    `params` are what did remain. `latency` is the milliseconds predicted where a budget is on time,
    `found` what the stopwatch or a search said of its plan. `pruned_metric` is before finetuning,
    `metric` after it (None until then), both on the valid split. `reason` says why the attempt was
    (not) accepted.
    """

    number: int
    target: Mapping[str, float]
    macs: int
    params: int
    groups: tuple[GroupRecord, ...]
    pruned_metric: float | None = None
    metric: float | None = None
    experiments: tuple[ExperimentRecord, ...] = ()
    accepted: bool = False
    reason: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    latency: float | None = None
    found: str = ""


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One round, 1-based: its attempts in order, at most the last of them accepted."""

    number: int
    attempts: tuple[AttemptRecord, ...]

    @property
    def accepted(self) -> AttemptRecord | None:
        """The attempt that feeds the next round, None where none met the floor."""
        return next((attempt for attempt in self.attempts if attempt.accepted), None)


@dataclass(frozen=True, slots=True)
class CertificateRecord:
    """How far the pruned model was from the masked one: largest relative error, and in words."""

    error: float
    dtype: str
    text: str


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One whole run.

    `floor` is the worst metric on the valid split the user accepts (None: any). `outcome` is
    "done" (the budget is met), "floor" (stopped at the best model that met the floor),
    "missed" (the stopwatch says that a budget on time is not kept), or "partial" (a run still under
    way, or verbs called by hand). `stages` is seconds per stage;
    `epochs` counts all finetuning epochs of all experiments, discarded ones included. `command`
    repeats the run; `plan` is the path of the final plan relative to the work folder. `untested` is
    why there is no figure of the test split although the run is at its end.
    """

    task: str
    metric: str
    higher_is_better: bool
    outcome: Outcome
    config: Mapping[str, Mapping[str, Any]]
    command: str
    created: str
    baseline: ModelRecord
    compressed: ModelRecord | None
    floor: float | None
    budget: Mapping[str, float]
    sensitivity: SensitivityRecord | None
    rounds: tuple[RoundRecord, ...]
    groups: tuple[GroupRecord, ...]
    frozen: tuple[FrozenRecord, ...]
    certificate: CertificateRecord | None
    latency_text: str
    epochs: int
    stages: Mapping[str, float]
    environment: Mapping[str, str]
    notes: tuple[str, ...] = ()
    plan: str = "final/plan.json"
    latency_budget: LatencyBudgetRecord | None = None
    untested: str = ""
    schema: int = SCHEMA

    def to_data(self) -> dict[str, Any]:
        """Turn the record into plain JSON values (a number that is not finite becomes None)."""
        data: dict[str, Any] = json.loads(_ADAPTER.dump_json(self))
        return data

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> "RunRecord":
        """Rebuild a record from `to_data`.

        Raises:
            WorkspaceError: The data are not a record of this schema.
        """
        try:
            return _ADAPTER.validate_python(dict(data))
        except ValidationError as cause:
            raise WorkspaceError(
                f"this is not a run record of schema {SCHEMA}: {cause.errors()[0]['msg']} at "
                f"`{'.'.join(map(str, cause.errors()[0]['loc']))}`. Write it again with "
                "`prunella run`"
            ) from cause


_ADAPTER: TypeAdapter[RunRecord] = TypeAdapter(RunRecord)
