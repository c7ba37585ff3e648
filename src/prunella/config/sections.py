"""Every setting of a run, by section: its type, its default, what it means and what it may be."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from prunella.config.kinds import (
    LARGE,
    Bound,
    Decay,
    Numbers,
    Place,
    Ratios,
    Removed,
    Share,
    listed,
    plain_types,
    single,
    toml,
)
from prunella.errors import ConfigError

if TYPE_CHECKING:  # it brings torch along, which `prunella --help` need not wait for
    from prunella.plan import Budget


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        # Python counts True as 1: `epochs = true` would be one epoch.
        plain = plain_types(cls.model_fields[info.field_name or ""].annotation)
        values = value if isinstance(value, list | tuple) else [value]
        if bool not in plain and {int, float} & plain and any(isinstance(v, bool) for v in values):
            raise ValueError(f"this is no switch, it takes a number; got {toml(value)}")
        return value


class TaskSection(_Section):
    """What is pruned, on which data, judged how."""

    spec: Place = ""
    """A built-in task ("digits", "cifar10") or a Python file that defines `task`."""
    options: Mapping[str, Any] = Field(default_factory=dict)
    """Handed to the task as keyword arguments, e.g. `depth = 20`."""

    @field_validator("options", mode="before")
    @classmethod
    def _by_name(cls, options: object) -> object:
        if not isinstance(options, Mapping):
            raise ValueError(
                f"these are the task's own options, each by its name; got {options!r}. Write "
                "`--task.options.NAME VALUE`, or in the file: options = {NAME = VALUE}"
            )
        return options

    @field_validator("options")
    @classmethod
    def _recordable(cls, options: Mapping[str, Any]) -> Mapping[str, Any]:
        for name, value in options.items():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError):
                raise ValueError(
                    f"`{name}` is kept in the run's record, as JSON, which has no {value!r}; give "
                    "it as text, in quotes"
                ) from None
        return options


class BudgetSection(_Section):
    """Upper bounds on what remains of the dense model."""

    macs: Bound = None
    """Multiply-accumulates that may remain: a share (0.5 or "50%") or a count."""
    params: Bound = None
    """Parameters that may remain: a share (0.5 or "50%") or a count."""
    weight_bytes: Bound = None
    """Bytes of parameters and buffers that may remain: a share (0.5 or "50%") or a count."""
    activation_bytes: Bound = None
    """Bytes of activations at the worst moment of one sample's forward pass, likewise."""
    latency: Bound = None
    """Time of one forward of the example inputs on `runtime`: a share (0.5 or "50%") or a time with
    its unit ("8ms"). It is measured, and the final model is timed."""
    runtime: str | None = None
    """Where that time is: "torch", "torch-compile", "onnxruntime" or "openvino", with options as in
    "onnxruntime:threads=1"; unset: torch, eager, as the run itself; threads unset: the run's."""

    @property
    def bounds(self) -> dict[str, Any]:
        """The bounds by name, None where there is none."""
        return self.model_dump(exclude={"runtime"})

    @property
    def asked(self) -> bool:
        """Whether there is any bound."""
        return any(bound is not None for bound in self.bounds.values())

    @model_validator(mode="after")
    def _check(self) -> "BudgetSection":
        for name, value in self.model_dump(exclude={"latency", "runtime"}).items():
            if isinstance(value, float) and value > 1 and not value.is_integer():
                raise ValueError(
                    f"{name} is a share of the dense model in (0, 1] (0.5 or '50%') or a count, "
                    f"got {value}"
                )
        if self.asked:
            self.to_budget()
        if self.runtime is not None:
            self._check_runtime()
        return self

    def _check_runtime(self) -> None:
        from prunella.runtimes import Runtime

        Runtime.of(self.runtime or "")
        if self.latency is None:
            raise ValueError(
                f"`runtime` ({self.runtime}) is where a budget on time is measured, and there is "
                "none: give `latency` too (0.5, or '8ms'), or leave out `runtime`"
            )

    def to_budget(self) -> "Budget":
        """Give the budget; its constructor has the rules."""
        from prunella.plan import Budget

        return Budget(**self.bounds)


class AnalyzeSection(_Section):
    """How the sensitivity of every group is measured."""

    ratios: Ratios = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
    """Shares of a group's channels removed, one measurement of every group at each."""
    share: Share = 1.0
    """Share of the split to measure on; less than 0.5 needs `allow_small_share`."""
    allow_small_share: bool = False
    """Accept a sensitivity measured on less than half of the split."""
    split: Literal["valid", "train"] = "valid"
    """Which data to measure on; the test data are never used to choose anything."""

    precision: Literal["no", "bf16"] = "no"
    """Mixed precision of the measurements."""
    workers: int = Field(default=1, ge=1)
    """Processes that measure side by side, on the CPU with one thread each."""
    confidence: float | None = Field(default=None, gt=0, lt=1)
    """Stop each measurement where, with this confidence, its answer is settled; unset: all of the
    data, always. For metrics that are means over samples of numbers from 0 to 1."""
    memory_gb: float | None = Field(default=None, ge=0, le=LARGE)
    """Memory for what measurements share, so that less is computed twice; 0 shares nothing; unset:
    a quarter of what is free."""

    @field_validator("ratios")
    @classmethod
    def _ascending(cls, ratios: tuple[float, ...]) -> tuple[float, ...]:
        if not ratios or list(ratios) != sorted(set(ratios)):
            raise ValueError(f"give at least one ratio, ascending, none twice; got {ratios}")
        return ratios

    @model_validator(mode="after")
    def _enough(self) -> "AnalyzeSection":
        if self.share < 0.5 and not self.allow_small_share:
            raise ValueError(
                f"share={self.share} would judge the groups on less than half of the data, which "
                "misleads: give at least 0.5, or say allow_small_share = true"
            )
        return self


class PruneSection(_Section):
    """How channels are chosen, and in how many rounds."""

    criterion: str = "auto"
    """Importance of a channel: the name of a criterion; "auto": how well others can stand in for it
    where `repair` is on, else its weights."""
    repair: bool = True
    """Fit what stays to make up for what goes, on training inputs without their labels."""
    calibration: int = Field(default=512, ge=1)
    """Samples to repair with; a few hundred are enough."""
    exclude: Annotated[tuple[str, ...], BeforeValidator(single)] = ()
    """Layers to leave alone: names, globs ("layer3.*") or regexes ("re:.*downsample.*")."""
    max_ratio: Removed = 0.8
    """No group loses more of its dense channels, unless the budget cannot be met otherwise: a group
    measured alone seems cheap to empty, but what is gone no finetuning brings back."""
    multiple_of: int = Field(default=1, ge=1)
    """Every axis that is cut keeps a multiple of so many positions, as some hardware likes (8)."""
    candidates: int = Field(default=1, ge=1)
    """Plans to try in each round, all within the budget: each is repaired, and judged on training
    inputs by how near its outputs stay to those before. For those who train little."""
    rounds: int = Field(default=1, ge=1)
    """Rounds of prune and finetune until the budget, each removing the same share of the rest. With
    as many epochs in all, fewer end better; where one misses the floor, there are more."""
    retries: int = Field(default=2, ge=0)
    """How often, in all, a round that missed the floor is tried again with a smaller step."""

    @field_validator("exclude")
    @classmethod
    def _expressions(cls, exclude: tuple[str, ...]) -> tuple[str, ...]:
        for entry in exclude:
            if entry.startswith("re:"):
                try:
                    re.compile(entry[3:])
                except re.error as cause:
                    raise ValueError(f"{entry!r} is no regular expression: {cause}") from cause
        return exclude

    @model_validator(mode="after")
    def _repaired(self) -> "PruneSection":
        if self.candidates > 1 and not self.repair:
            raise ValueError(
                f"the {self.candidates} `candidates` are each judged after their repair: leave "
                "`repair` on, or leave out `candidates`"
            )
        return self


class FinetuneSection(_Section):
    """How a pruned model is healed."""

    epochs: int | None = Field(default=None, ge=1)
    """Epochs of one experiment; unset: the task suggests, or else 12."""
    last_epochs: int | None = Field(default=None, ge=1)
    """Epochs of one experiment of the last round; unset: as in the others."""
    trials: int = Field(default=3, ge=1)
    """Experiments a round, over the learning rate and its decay; hopeless ones are ended early."""
    lr: Numbers = ()
    """Initial learning rates to try, the most promising first; empty: around the task's own."""
    decays: Annotated[tuple[Decay, ...], BeforeValidator(listed)] | None = None
    """Decay policies to try, the most promising first; unset: the task's own, or else cosine and
    linear."""
    optimizer: Literal["sgd", "adamw"] | None = None
    """Optimizer; unset: the task suggests."""
    momentum: float | None = Field(default=None, ge=0, lt=1)
    """Momentum of sgd; unset: the task suggests."""
    weight_decay: float | None = Field(default=None, ge=0, le=LARGE)
    """Weight decay; unset: the task suggests."""
    warmup: float | None = Field(default=None, ge=0, lt=1)
    """Share of the steps in which the learning rate grows from zero; unset: the task suggests."""
    distill: float | None = Field(default=None, ge=0, le=1)
    """Share of the loss that is learning from the dense model; 0 is off; unset: task suggests."""
    temperature: float | None = Field(default=None, gt=0, le=LARGE)
    """Softness of the dense model's answers when learning from them; unset: the task suggests."""
    feature_distill: float | None = Field(default=None, ge=0, le=LARGE)
    """Weight of learning what the dense model makes on the way; 0 is off; unset: task suggests."""
    carry_state: bool | None = None
    """Begin a round with the optimizer's state of the round before; unset: the task suggests."""
    ema: float | None = Field(default=None, ge=0, lt=1)
    """Decay of an average of the weights, which is kept instead of the last; 0 is off."""
    masked: bool = False
    """Train the masked model (all shapes kept) and cut afterwards; slower, same result shape."""
    floor: float | None = None
    """Worst metric on the valid split that a round may end with."""
    max_drop: float | None = Field(default=None, ge=0)
    """The same as a distance from the dense model's metric, e.g. 0.01; give one of the two."""

    @field_validator("lr")
    @classmethod
    def _positive(cls, lr: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < value <= LARGE for value in lr):
            raise ValueError(f"learning rates are greater than 0, and at most {LARGE:g}; got {lr}")
        return lr

    @field_validator("decays")
    @classmethod
    def _some(cls, decays: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if decays == ():
            raise ValueError("name at least one decay")
        return decays

    @model_validator(mode="after")
    def _one_floor(self) -> "FinetuneSection":
        if self.floor is not None and self.max_drop is not None:
            raise ValueError("give floor or max_drop, not both")
        return self


class RunSection(_Section):
    """Where and how things run."""

    folder: Place = Field(default="prunella-run", min_length=1)
    """The work folder: everything a run knows, so that any verb can go on from it."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Start of all chance: order of the data, experiments tried."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; unset: as many as the machine suggests."""
    device: str = "auto"
    """"cpu", "cuda", "cuda:1", ...; "auto" takes an accelerator where there is one."""
    precision: Literal["no", "bf16"] | None = None
    """Mixed precision of finetuning; unset: the task suggests, or else "no"."""
    latency_seconds: float = Field(default=2.0, gt=0)
    """Time to spend on measuring latency, both models together."""


class Config(_Section):
    """All settings of a run."""

    task: TaskSection = Field(default_factory=TaskSection)
    budget: BudgetSection = Field(default_factory=BudgetSection)
    analyze: AnalyzeSection = Field(default_factory=AnalyzeSection)
    prune: PruneSection = Field(default_factory=PruneSection)
    finetune: FinetuneSection = Field(default_factory=FinetuneSection)
    run: RunSection = Field(default_factory=RunSection)

    @model_validator(mode="after")
    def _one_plan_on_time(self) -> "Config":
        if self.prune.candidates > 1 and self.budget.latency is not None:
            raise ValueError(
                "`prune.candidates` are tried within budgets that can be predicted exactly; with "
                "`budget.latency` one plan is made and timed. Leave out one of the two"
            )
        return self

    @property
    def folder(self) -> Path:
        """The work folder."""
        return Path(self.run.folder)

    def to_budget(self) -> "Budget":
        """Give the budget.

        Raises:
            ConfigError: None was set.
        """
        if not self.budget.asked:
            raise ConfigError(
                "no budget is set. Say what may remain of the model, e.g. `--budget.macs 0.5`, or "
                "in the file: [budget] macs = 0.5"
            )
        return self.budget.to_budget()
