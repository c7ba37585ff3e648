"""What a user may set: one TOML file, every key of it also `--section.key value` on every verb."""

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, time
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from prunella.errors import ConfigError
from prunella.files import expanded

if TYPE_CHECKING:  # it brings torch along, which `prunella --help` need not wait for
    from prunella.plan import Budget

Share = Annotated[float, Field(gt=0, le=1)]
Removed = Annotated[float, Field(gt=0, lt=1)]
Bound = float | int | str | None
LARGE = 1e6  # beyond all sense, and far below where numbers of 32 bits end
_SWITCHED = ("true", "false", "yes", "no", "on", "off", "1", "0")


def _listed(value: object) -> object:
    # One value stands for a list of one; "0.01,0.1" is what one types on a command line.
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return [value] if isinstance(value, int | float) else value


def _single(value: object) -> object:
    # A name or regex may hold a comma, so it is not taken apart.
    return [value] if isinstance(value, str) else value


def _at_home(value: str) -> str:
    if "\0" in value:
        raise ValueError(f"there is no such place, got {value!r}")
    return str(expanded(value)) if value.startswith("~") else value


Place = Annotated[str, AfterValidator(_at_home)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(_listed)]
Ratios = Annotated[tuple[Removed, ...], BeforeValidator(_listed)]
Decay = Literal["cosine", "linear", "step", "constant"]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        # Python counts True as 1: `epochs = true` would be one epoch.
        plain = _plain(cls.model_fields[info.field_name or ""].annotation)
        listed = value if isinstance(value, list | tuple) else [value]
        if bool not in plain and {int, float} & plain and any(isinstance(v, bool) for v in listed):
            raise ValueError(f"this is no switch, it takes a number; got {_toml(value)}")
        return value


class TaskSection(_Section):
    """What is pruned, on which data, judged how."""

    spec: Place = ""
    """A built-in task ("digits", "cifar10") or a Python file that defines `task`."""
    options: Mapping[str, Any] = Field(default_factory=dict)
    """Handed to the task as keyword arguments, e.g. `depth = 20`."""

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
    exclude: Annotated[tuple[str, ...], BeforeValidator(_single)] = ()
    """Layers to leave alone: names, globs ("layer3.*") or regexes ("re:.*downsample.*")."""
    max_ratio: Removed = 0.8
    """No group loses more of its dense channels, unless the budget cannot be met otherwise: a group
    measured alone seems cheap to empty, but what is gone no finetuning brings back."""
    rounds: int = Field(default=3, ge=1)
    """Rounds of prune and finetune until the budget, each removing the same share of the rest."""
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


class FinetuneSection(_Section):
    """How a pruned model is healed."""

    epochs: int | None = Field(default=None, ge=1)
    """Epochs of one experiment; unset: the task suggests, or else 4."""
    last_epochs: int | None = Field(default=None, ge=1)
    """Epochs of one experiment of the last round; unset: as in the others."""
    trials: int = Field(default=3, ge=1)
    """Experiments a round, over the learning rate and its decay; hopeless ones are ended early."""
    lr: Numbers = ()
    """Initial learning rates to try, the most promising first; empty: around the task's own."""
    decays: Annotated[tuple[Decay, ...], BeforeValidator(_listed)] | None = None
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


def load(file: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read the settings.

    Paths in the file (`task.spec`, `run.folder`) are relative to the file, those in `overrides` to
    the current folder.

    Args:
        file: A TOML file; None takes the defaults.
        overrides: Values by "section.key", stronger than the file's. Text stays as it is where the
            setting is text, and is read as TOML elsewhere ("0.5", "true", "[0.1, 0.2]").

    Raises:
        ConfigError: The file cannot be read, a key is unknown, or a value outside what it may be.
    """
    data = {} if file is None else _read(file)
    for key, value in (overrides or {}).items():
        _set(data, key, _literal(key, value) if isinstance(value, str) else value)
    source = (
        "the options" if file is None else f"`{file}` and the options" if overrides else f"`{file}`"
    )
    try:
        return Config.model_validate(data)
    except ValidationError as cause:
        raise ConfigError(_explain(cause, source)) from cause


def joined(arguments: Sequence[str]) -> list[str]:
    """Write every `--section.key value` as one word, `--section.key=value`; the others stay.

    A switch needs no value; only what looks like one is taken for it.

    Example:
        >>> joined(["digits", "--run.seed", "1", "--finetune.masked", "--quiet"])
        ['digits', '--run.seed=1', '--finetune.masked=true', '--quiet']

    Raises:
        ConfigError: There is no such setting, or its value is missing.
    """
    words: list[str] = []
    rest = list(arguments)
    while rest:
        head, equals, value = rest.pop(0).partition("=")
        if not head.startswith("--") or "." not in head:
            words.append(head + equals + value)
            continue
        key = head[2:].replace("-", "_")
        _check_key(key)
        if not equals:
            value = _value(key, rest)
        words.append(f"--{key}={value}")
    return words


def _value(key: str, rest: list[str]) -> str:
    """Take the value of a setting off the words that follow it."""
    follows = bool(rest) and not rest[0].startswith("--")
    if _is_switch(key):
        return rest.pop(0) if follows and rest[0].lower() in _SWITCHED else "true"
    if follows:
        return rest.pop(0)
    default, meaning = next(
        ((default, text) for name, default, text in keys() if name == key), (None, "")
    )
    sample = "" if default in (None, "", ()) else f", e.g. `--{key} {_typed(default)}`"
    raise ConfigError(f"`--{key}` needs a value{sample}. {meaning}".removesuffix(". "))


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """Turn `--section.key value` and `--section.key=value` into a mapping; the last one counts.

    Raises:
        ConfigError: An argument is not of that form, or its value is missing.
    """
    overrides: dict[str, str] = {}
    for word in joined(arguments):
        if not word.startswith("--"):
            raise ConfigError(
                f"do not know what to do with `{word}`. Settings are given as "
                "`--section.key value`, e.g. `--budget.macs 0.5`"
            )
        key, _, value = word[2:].partition("=")
        _check_key(key)
        overrides[key] = value
    return overrides


def keys() -> Iterator[tuple[str, Any, str]]:
    """List every setting: "section.key", its default, what it means."""
    for section, outer in Config.model_fields.items():
        kind = outer.annotation
        assert isinstance(kind, type), f"section {section} is not a class"
        assert issubclass(kind, BaseModel), f"section {section} is not a model"
        for key, inner in kind.model_fields.items():
            default = inner.get_default(call_default_factory=True)
            yield f"{section}.{key}", default, (inner.description or "").replace("\n", " ")


def changed(config: Config) -> dict[str, str]:
    """List the settings that differ from the defaults, as they would be typed."""
    typed: dict[str, str] = {}
    for name, default, _ in keys():
        section, key = name.split(".")
        value = getattr(getattr(config, section), key)
        if name == "task.options":
            typed |= {f"{name}.{option}": _typed(found) for option, found in value.items()}
        elif value != default:
            typed[name] = _typed(value)
    return typed


def _typed(value: object) -> str:
    return value if isinstance(value, str) else _toml(value)


def template(task: str = "digits") -> str:
    """Write a commented TOML file: task and budget set, every other key there with its default."""
    lines = ["# Settings of a Prunella run. Keys that are commented out show their defaults.", ""]
    previous = ""
    chosen = {"task.spec": task, "budget.macs": 0.5, "finetune.max_drop": 0.01}
    for name, default, text in keys():
        section, key = name.split(".")
        if section != previous:
            lines += ["", f"[{section}]"] if previous else [f"[{section}]"]
            previous = section
        lines.append(f"# {text}")
        value = chosen.get(name, default)
        shown = f"{key} = {_toml(value)}" if value is not None else f"{key} ="
        lines.append(shown if name in chosen else f"# {shown}")
    return "\n".join(lines) + "\n"


def _read(file: Path) -> dict[str, Any]:
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(
            f"there is no file `{file}`. Write a sample with `prunella init {file.name}`"
        ) from None
    except (OSError, UnicodeDecodeError) as cause:
        raise ConfigError(f"cannot read `{file}`: {cause}") from cause
    except (ValueError, RecursionError) as cause:
        raise ConfigError(f"`{file}` is not TOML: {cause}. Correct that line") from cause
    task, run = data.get("task"), data.get("run")
    if isinstance(task, dict) and str(task.get("spec", "")).endswith(".py"):
        task["spec"] = _beside(file, task["spec"])
    if isinstance(run, dict) and isinstance(run.get("folder"), str) and run["folder"]:
        run["folder"] = _beside(file, run["folder"])
    return data


def _beside(file: Path, path: str) -> str:
    return path if path.startswith("~") else str(file.parent / path)


def _set(data: dict[str, Any], key: str, value: object) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = data.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"`{section}` is a section, not a value; it holds {inner!r}")
        data = inner
    data[last] = value


def _literal(key: str, text: str) -> object:
    kind = _kind(key)
    if _plain(kind) == {str} and not _is_list(kind):
        return text
    try:
        value: object = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # not TOML; or too many digits or brackets
        return text
    if isinstance(value, date | time):  # of a task's option: what is no JSON stays as typed
        return text
    if _plain(kind) == {str}:  # a list of texts
        listed = isinstance(value, list) and all(isinstance(item, str) for item in value)
        return value if listed else text
    return value


def _kind(key: str) -> object:
    """Give the type of a setting, None where there is no such setting."""
    section, _, name = key.partition(".")
    outer = Config.model_fields.get(section)
    inner = getattr(outer and outer.annotation, "model_fields", {}).get(name)
    return None if inner is None else inner.annotation


def _is_list(kind: object) -> bool:
    return get_origin(kind) is tuple or any(map(_is_list, get_args(kind)))


def _plain(kind: object) -> set[object]:
    """List the plain types that a setting is made of, whether one of them, a choice or a list."""
    if get_origin(kind) is Literal:
        return {type(value) for value in get_args(kind)}
    if get_origin(kind) in (Union, UnionType, tuple, Annotated):
        parts = get_args(kind)[:1] if get_origin(kind) is Annotated else get_args(kind)
        return {plain for part in parts for plain in _plain(part)} - {NoneType, ...}
    return {kind}


def _check_key(key: str) -> None:
    known = [name for name, _, _ in keys()]
    if key in known or key.startswith("task.options."):
        return
    raise ConfigError(f"there is no setting `{key}`{_nearest(key, known)}")


def _nearest(key: str, known: Sequence[str]) -> str:
    last = key.rpartition(".")[2]
    same = [name for name in known if name.rpartition(".")[2] == last]
    near = same or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not near:
        shorts = {name.rpartition(".")[2]: name for name in known}
        near = [shorts[name] for name in difflib.get_close_matches(last, list(shorts), n=1)]
    if near:
        return f". Did you mean `{near[0]}`?"
    return f". The sections are {', '.join(Config.model_fields)}; `prunella init` writes all keys"


def _is_switch(key: str) -> bool:
    return _plain(_kind(key)) == {bool}


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value)


def _explain(cause: ValidationError, source: str) -> str:
    known = [name for name, _, _ in keys()]
    lines: dict[str, str] = {}
    for error in cause.errors():
        key = ".".join(str(part) for part in error["loc"] if isinstance(part, str))
        # A setting of several types reports each of them, below itself; the first says enough.
        key = next((name for name in known if key.startswith(f"{name}.")), key)
        if error["type"] == "extra_forbidden":
            wanted = known if "." in key else list(Config.model_fields)
            lines.setdefault(key, f"there is no setting `{key}`{_nearest(key, wanted)}")
            continue
        rule = error["msg"].removeprefix("Value error, ")
        own = error["type"] == "value_error"
        got = "" if own or isinstance(error["input"], dict) else f", got {error['input']!r}"
        lines.setdefault(key, f"`{key}`: {rule[0].lower()}{rule[1:]}{got}")
    return f"in {source}: " + "; ".join(lines.values())
