"""The values that flow between the stages after tracing: groups, scores, budgets, plans."""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np

from prunella.errors import ConfigError, PlanMismatchError
from prunella.graph import Graph

SCHEMA = 1

Form = Literal["class", "graph"]
"""What a pruned model is: an instance of the user's own class, or the captured graph rewritten."""

Heads = Literal["whole", "inside"]
"""What is cut where channels are laid out as `[heads, positions]`: heads, or positions in each."""

Indices = tuple[int, ...] | tuple[tuple[int, ...], ...]
"""Kept indices along one dimension; one tuple per conv group where each keeps its own."""


@dataclass(frozen=True, slots=True, order=True)
class Axis:
    """One dimension of one parameter or buffer, e.g. `Axis("conv1.weight", 0)`."""

    tensor: str
    dim: int


@dataclass(frozen=True, slots=True)
class Frozen:
    """Why channels may not be cut: the reason, and the operator and module that caused it."""

    reason: str
    op: str
    module: str

    def __str__(self) -> str:
        return f"{self.reason} (`{self.op}` in `{self.module or 'the model itself'}`)"


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that live on the same axes and are cut together, one by one.

    Channel `c` of the group occupies the positions `axes[axis][c]` of each axis: an array
    `[channels, m]`, with m > 1 where one channel has several slices on an axis (the columns of a
    linear layer behind a flatten). `start` numbers the group's first channel among the channels of
    all groups; `Blocks` and `MacTerm` speak in those numbers.
    """

    name: str
    channels: int
    start: int
    axes: Mapping[Axis, np.ndarray]
    frozen: tuple[Frozen, ...] = ()


@dataclass(frozen=True, eq=False)
class Blocks:
    """Every row must keep the same number of channels (grouped convolution, channel shuffle).

    `rows` is `[blocks, size]`, of channel numbers as in `Group.start`. `moved` says that a movement
    operator cuts the rows apart, so that the order of later channels depends on what is kept. `tie`
    says that only the model's own code asks for it, which reads one number for all rows.
    `index` is the constraint's place among those recorded while labels were sent through.
    """

    rows: np.ndarray
    where: str
    moved: bool
    index: int
    tie: bool = False


@dataclass(frozen=True, eq=False)
class MacTerm:
    """Multiply-accumulates of one operator: `factor` times the kept channels in each of `dims`.

    `dims` list channel numbers as in `Group.start`; -1 is what is never cut. `sums`: none are
    counted where a single channel is left of the last of them.
    """

    node: str
    module: str
    factor: int
    dims: tuple[np.ndarray, ...]
    sums: bool = False


@dataclass(frozen=True, eq=False)
class Follower:
    """A module's integer attribute: how many of `channels` (numbers) are kept, divided by `per`."""

    module: str
    attribute: str
    channels: np.ndarray
    per: int = 1


@dataclass(frozen=True, eq=False)
class Groups:
    """Everything coupling found out about a network.

    Iterating gives the groups that may be cut; `frozen` are those that may not, each with reasons.
    Channels are numbered over both, in no order to rely on; `axes` gives the number at each
    position of each axis, `[size]`, or `[conv_groups, size]` where every conv group has its own.
    `marked` are the nodes that take statistics over channels. `form` says what the pruned model
    will be: "class" respects the sizes that the model's own code spells out, "graph" rewrites them.
    `code_binds`: such sizes froze some groups. `heads` says what was cut of attention: whole heads,
    or positions inside all of them.
    """

    graph: Graph
    prunable: tuple[Group, ...]
    frozen: tuple[Group, ...]
    blocks: tuple[Blocks, ...]
    terms: tuple[MacTerm, ...]
    followers: tuple[Follower, ...]
    axes: Mapping[Axis, np.ndarray]
    marked: tuple[str, ...] = ()
    form: Form = "class"
    code_binds: bool = False
    heads: Heads = "whole"

    def __iter__(self) -> Iterator[Group]:
        return iter(self.prunable)

    def __len__(self) -> int:
        return len(self.prunable)

    def __getitem__(self, name: str) -> Group:
        for group in self.prunable:
            if group.name == name:
                return group
        known = [group.name for group in self.prunable]
        raise ConfigError(f"no group called {name!r}{nearest(name, known)}")

    @property
    def channels(self) -> int:
        """Count the channels of all groups, frozen ones included."""
        return sum(group.channels for group in (*self.prunable, *self.frozen))

    def why_frozen(self) -> list[str]:
        """Say for each frozen group why, in one line."""
        return [
            f"{group.name} ({group.channels} channels): {'; '.join(map(str, group.frozen))}"
            for group in self.frozen
        ]


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest the closest known name, for messages."""
    close = difflib.get_close_matches(name, list(known), 1, 0.4)
    return f"; did you mean {close[0]!r}?" if close else ""


@dataclass(frozen=True, slots=True)
class Costs:
    """What one sample costs, and how large the model is.

    Attributes:
        macs: Multiply-accumulates.
        params: How many parameters there are.
        weight_bytes: Bytes of parameters and buffers; None in a plan from before they were counted.
        activation_bytes: Bytes of live activations at the worst moment of the forward pass; None
            where no budget asks for them.
        latency: Milliseconds of one forward of the example inputs, as a latency model predicts
            them; None where no budget asks for them.
    """

    macs: int
    params: int
    weight_bytes: int | None = None
    activation_bytes: int | None = None
    latency: float | None = None


@dataclass(frozen=True)
class Scores:
    """Importance of every channel of every group, higher = keep; `[channels]` per group name."""

    criterion: str
    values: Mapping[str, np.ndarray]


_MADE_BY = {
    "Calibration": "prunella.calibration.calibration(batches)",
    "Exported": "export(model, example_inputs, path)",
    "Graph": "trace(model, example_inputs)",
    "Groups": "couple(graph)",
    "Plan": "allocate(groups, scores, target)",
    "Scores": "score(model, groups)",
}


def check_kind(given: object, kind: type) -> None:
    """Raise `ConfigError` where something else was given in the place of a stage's value."""
    if isinstance(given, kind):
        return
    name, attribute = kind.__name__, kind.__name__.lower()
    held = isinstance(getattr(given, attribute, None), kind)
    remedy = f"give its `.{attribute}`" if held else f"`{_MADE_BY[name]}` makes it"
    raise ConfigError(f"`{name}` is expected here, got {type(given).__name__}: {remedy}")


def check_scores(groups: Groups, scores: Scores) -> None:
    """Raise `ConfigError` unless there is a number for every channel of every group."""
    check_kind(groups, Groups)
    check_kind(scores, Scores)
    for group in groups:
        if group.name not in scores.values:
            raise ConfigError(
                f"there are no scores for group {group.name!r}"
                f"{nearest(group.name, scores.values)}; score the groups with `prunella.score`, or "
                "give an array of one number per channel"
            )
        values = np.asarray(scores.values[group.name])
        if values.shape != (group.channels,) or np.isnan(values).any():
            raise ConfigError(
                f"the scores of group {group.name!r} are one number for each of its "
                f"{group.channels} channels, higher = keep; got an array of shape {values.shape}"
                f"{' with NaN' if np.isnan(values).any() else ''}"
            )


@dataclass(frozen=True)
class Budget:
    """Upper bounds on what remains; several hold together.

    Each is a share of the dense model (`0.5` or `"50%"`), or an absolute count (an int such as
    `20_000_000`), of time with its unit ("8ms"). None means unbounded.

    Attributes:
        macs: Multiply-accumulates of one sample.
        params: Parameters.
        weight_bytes: Bytes of all parameters and buffers, in the types they are stored in.
        activation_bytes: Bytes of live activations at the worst moment of one sample's forward pass
            (`costs.memory`).
        latency: Time of one forward of the example inputs, all its samples, on a runtime for which
            there is a latency model.
    """

    macs: float | int | str | None = None
    params: float | int | str | None = None
    weight_bytes: float | int | str | None = None
    activation_bytes: float | int | str | None = None
    latency: float | str | None = None

    def __post_init__(self) -> None:
        bounds = {f.name: getattr(self, f.name) for f in fields(self)}
        if all(bound is None for bound in bounds.values()):
            raise ConfigError(
                "a budget bounds something: give `macs`, `params` or both, `weight_bytes`, "
                "`activation_bytes` or `latency`"
            )
        for name, bound in bounds.items():
            if name != "latency":
                _limit(name, bound, 1)
            elif bound is not None:
                milliseconds(bound, 1.0)

    def resolve(self, dense: Costs) -> dict[str, float]:
        """Turn the bounds into counts, and milliseconds, of the model with these dense costs."""
        limits: dict[str, float] = {}
        for field in fields(self):
            bound = getattr(self, field.name)
            if bound is not None:
                whole = getattr(dense, field.name)
                assert whole is not None, f"the dense model's {field.name} are known"
                if field.name == "latency":
                    limits[field.name] = milliseconds(bound, whole)
                else:
                    limits[field.name] = _limit(field.name, bound, whole)
        return limits


_UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def milliseconds(bound: float | str, dense: float) -> float:
    """Read a bound on time: a share of the dense model's, or a time with its unit.

    Raises:
        ConfigError: It is neither.
    """
    found = re.fullmatch(r"([0-9.eE+-]+?) *(us|ms|s|%|)", str(bound).strip())
    try:
        number = float(found[1]) if found else float("nan")
    except ValueError:
        number = float("nan")
    unit = found[2] if found else ""
    share = number / 100 if unit == "%" else number
    if unit in _UNITS_MS and 0 < number < float("inf"):
        return number * _UNITS_MS[unit]
    if unit in ("", "%") and 0 < share <= 1 and not isinstance(bound, bool):
        return share * dense
    raise ConfigError(
        "latency is a share of the dense model's in (0, 1] (0.5 or '50%') or a time with its unit "
        f"('8ms', '0.2 s'), got {bound!r}"
    )


def _limit(name: str, bound: float | int | str | None, dense: int) -> int:
    rule = f"{name} is a share of the dense model in (0, 1] (0.5 or '50%') or a count > 1"
    if bound is None:
        return dense
    whole = isinstance(bound, str) and bound.endswith("%")  # "200%" is no count of two
    try:
        found = float(str(bound)[:-1]) / 100 if whole else float(bound)
    except (TypeError, ValueError):
        raise ConfigError(f"{rule}, got {bound!r}") from None
    if isinstance(bound, bool) or not found > 0 or (found > 1 and (whole or found % 1)):
        raise ConfigError(f"{rule}, got {bound!r}")
    return int(found * dense) if found <= 1 else int(found)


@dataclass(frozen=True)
class Plan:
    """What is kept of a model, in the original model's indices.

    Attributes:
        digest: Fingerprint of the structure the plan is for.
        channels: Kept channels of every group, ascending.
        sizes: Number of channels every group had.
        kept: Kept indices of every parameter and buffer that changes, by dimension, in the order
            in which the pruned model has them. Where every conv group keeps columns of its own,
            dimension 1 holds one tuple per conv group.
        attributes: New values of module attributes that do not follow from parameter shapes.
        before: Costs of the model the plan was made for.
        after: Costs of the pruned model.
        example: Description of inputs the model runs on (`examples.make`), None where unknown.
        form: What the pruned model is: the user's own class, or the captured graph rewritten.
        marked: Whether statistics are taken over channels of which some are cut, so that the masked
            model takes them over the kept ones.
        heads: Whether attention lost whole heads, or positions inside all of them.
        factors: What the kept slices are multiplied by, so that attention keeps its scale: by
            tensor and dimension, a number for each kept index. None where nobody looked yet.
    """

    digest: str
    channels: Mapping[str, Indices]
    sizes: Mapping[str, int]
    kept: Mapping[str, Mapping[int, Indices]]
    attributes: Mapping[str, Mapping[str, int | float]]
    before: Costs
    after: Costs
    example: Any = None
    form: Form = "class"
    marked: bool = False
    heads: Heads = "whole"
    factors: Mapping[str, Mapping[int, tuple[float, ...]]] | None = None

    def to_json(self) -> str:
        """Write the plan as JSON text."""
        record = {"schema": SCHEMA, **asdict(self)}
        return json.dumps(record, indent=None, separators=(",", ":"), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> "Plan":
        """Read a plan from JSON text.

        Raises:
            PlanMismatchError: The text is no plan, or one of another schema version.
        """
        try:
            record = json.loads(text)
            if record["schema"] != SCHEMA:
                raise PlanMismatchError(
                    f"the plan has schema {record['schema']}, this version reads {SCHEMA}; "
                    "make the plan again"
                )
            return Plan(
                digest=record["digest"],
                channels={name: _indices(kept) for name, kept in record["channels"].items()},
                sizes=record["sizes"],
                kept={
                    tensor: {int(dim): _indices(kept) for dim, kept in dims.items()}
                    for tensor, dims in record["kept"].items()
                },
                attributes=record["attributes"],
                before=Costs(**record["before"]),
                after=Costs(**record["after"]),
                example=record["example"],
                form=record.get("form", "class"),
                marked=record.get("marked", False),
                heads=record.get("heads", "whole"),
                factors=_factors(record.get("factors")),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, PlanMismatchError):
                raise
            raise PlanMismatchError(
                f"this is not a plan ({type(error).__name__}: {error}); it may be truncated: "
                "make the plan again"
            ) from error


def _indices(kept: list[Any]) -> Indices:
    return tuple(tuple(row) if isinstance(row, list) else row for row in kept)


def compose(first: Plan, second: Plan) -> Plan:
    """Join the plan of a model and the plan of what it left into one plan of the original.

    Args:
        first: From the original model to a pruned one.
        second: From that pruned model to a smaller one.
    """
    kept = {tensor: dict(dims) for tensor, dims in first.kept.items()}
    for tensor, dims in second.kept.items():
        for dim, indices in dims.items():
            known = kept.setdefault(tensor, {}).get(dim)
            kept[tensor][dim] = indices if known is None else _pick(known, indices)
    channels = dict(first.channels)
    for name, found in second.channels.items():
        if name in channels and len(channels[name]) == second.sizes[name]:
            channels[name] = _pick(channels[name], found)
    modules = {*first.attributes, *second.attributes}
    return Plan(
        digest=first.digest,
        channels=channels,
        sizes=first.sizes,
        kept=kept,
        attributes={
            module: {**first.attributes.get(module, {}), **second.attributes.get(module, {})}
            for module in sorted(modules)
        },
        before=first.before,
        after=second.after,
        example=first.example,
        form="graph" if "graph" in (first.form, second.form) else "class",
        marked=first.marked or second.marked,
        heads="inside" if "inside" in (first.heads, second.heads) else "whole",
        factors=_multiplied(first, second),
    )


def _factors(
    record: Mapping[str, Mapping[str, list[float]]] | None,
) -> dict[str, dict[int, tuple[float, ...]]] | None:
    if record is None:
        return None
    return {
        tensor: {int(dim): tuple(factors) for dim, factors in dims.items()}
        for tensor, dims in record.items()
    }


def _multiplied(first: Plan, second: Plan) -> dict[str, dict[int, tuple[float, ...]]] | None:
    if first.factors is None and second.factors is None:
        return None
    made = {tensor: dict(dims) for tensor, dims in (first.factors or {}).items()}
    for tensor, dims in made.items():
        for dim, known in dims.items():
            if dim in second.kept.get(tensor, {}):
                dims[dim] = tuple(np.array(known)[np.array(second.kept[tensor][dim])].tolist())
    for tensor, others in (second.factors or {}).items():
        mine = made.setdefault(tensor, {})
        for dim, factors in others.items():
            both = np.array(mine.get(dim, np.ones(len(factors)))) * factors
            mine[dim] = tuple(both.tolist())
    return made


def _pick(known: Indices, indices: Indices) -> Indices:
    picked = np.take_along_axis(np.array(known), np.array(indices), -1).tolist()
    return _indices(picked)
