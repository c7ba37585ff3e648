"""Score every channel of every group: `score(model, groups, criterion) -> Scores`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from prunella.calibration import Calibration, Data
from prunella.calibration import calibration as read
from prunella.errors import ConfigError, PlanMismatchError, TraceError
from prunella.model.structure import check_numbers, device_of, digest_of
from prunella.plan import Axis, Group, Groups, Scores, check_kind, nearest
from prunella.scoring.criteria import CRITERIA, WITH_DATA, WITHOUT_DATA, Criterion, Member
from prunella.scoring.gradients import gates_of
from prunella.scoring.listening import inputs_of
from prunella.scoring.roles import Role, roles_of
from prunella.scoring.rows import rows_of
from prunella.tracing.capturing import wrong_input


def score(
    model: nn.Module,
    groups: Groups,
    criterion: str | Criterion | None = None,
    calibration: Data | None = None,
) -> Scores:
    """Score the importance of every channel.

    Args:
        model: The model the groups were found in; left as it is.
        groups: Its groups.
        criterion: A name from `prunella.CRITERIA`, or a criterion of your own. None or
            "auto": with calibration data "fisher", without them "reading".
        calibration: What a criterion that looks at data is measured on: batches of inputs, or a
            `Calibration`, which may know a loss.

    Returns:
        A float per channel, higher = keep; comparable within a group.

    Raises:
        ConfigError: No criterion of that name, or it needs calibration data and there are none, or
            gradients that the model does not let through.
        PlanMismatchError: The groups are of another model.
    """
    check_kind(groups, Groups)
    name, criterion = chosen(criterion, with_data=calibration is not None)
    if digest_of(model) != groups.graph.digest:
        raise PlanMismatchError(
            f"the groups were found in another model than this `{type(model).__name__}`; "
            "trace and couple it again"
        )
    check_numbers(model, "scoring")
    data = None
    if calibration is not None:
        data = read(calibration, len(groups.graph.takes[0]), device_of(model))
    seen = _look(name, criterion, model, groups, data)
    parameters = dict(model.named_parameters())
    roles = roles_of(groups.graph)
    values = {}
    with torch.no_grad():
        for group in groups:
            members = _members(parameters, groups, group, roles, seen)
            values[group.name] = _values(criterion(members), group, members)
    return Scores(name, values)


@dataclass(frozen=True)
class _Seen:
    """What calibration data showed, by axis."""

    gates: Mapping[Axis, Tensor] = field(default_factory=dict)
    inputs: Mapping[Axis, Tensor] = field(default_factory=dict)


def chosen(criterion: str | Criterion | None, *, with_data: bool) -> tuple[str, Criterion]:
    """Return a criterion and its name, given either.

    Raises:
        ConfigError: There is none of that name.
    """
    if criterion is None or criterion == "auto":
        criterion = WITH_DATA if with_data else WITHOUT_DATA
    if isinstance(criterion, type) or not (isinstance(criterion, str) or callable(criterion)):
        raise ConfigError(
            "a criterion is a name of `prunella.CRITERIA` or a function of members, got "
            f"{criterion!r}; {'call the class' if isinstance(criterion, type) else 'name one'}"
        )
    if not isinstance(criterion, str):
        return getattr(criterion, "__name__", type(criterion).__name__.lower()), criterion
    if criterion not in CRITERIA:
        raise ConfigError(
            f"no criterion called {criterion!r}{nearest(criterion, CRITERIA)}; there are "
            f"{', '.join(CRITERIA)}"
        )
    return criterion, CRITERIA[criterion]


def _look(
    name: str,
    criterion: Criterion,
    model: nn.Module,
    groups: Groups,
    data: Calibration | None,
) -> _Seen:
    needs = frozenset(getattr(criterion, "needs", ()))
    if unknown := needs - {"gradients", "activations"}:
        raise ConfigError(
            f"a criterion needs gradients, activations or both; {name!r} needs {sorted(unknown)}"
        )
    if not needs:
        return _Seen()
    if data is None:
        free = [other for other, each in CRITERIA.items() if not getattr(each, "needs", ())]
        raise ConfigError(
            f"the criterion {name!r} needs {' and '.join(sorted(needs))}, which need data: give "
            "`calibration`, a few hundred inputs without labels, or take one of the criteria that "
            f"look at weights alone: {', '.join(free)}"
        )
    try:
        return _Seen(
            gates=gates_of(model, groups, data) if "gradients" in needs else {},
            inputs=inputs_of(model, groups, data) if "activations" in needs else {},
        )
    except (RuntimeError, TypeError) as error:
        for number, batch in enumerate(data.batches):
            if (problem := wrong_input(model, *batch)) is not None:
                raise TraceError(f"batch {number} of the calibration data: {problem}") from error
        raise


def _members(
    parameters: Mapping[str, Tensor],
    groups: Groups,
    group: Group,
    roles: Mapping[Axis, Role],
    seen: _Seen,
) -> list[Member]:
    """Return what the group's channels have on every parameter axis."""
    found = []
    for axis, positions in group.axes.items():
        if axis.tensor in parameters:
            rows = rows_of(parameters[axis.tensor].detach(), groups, axis)
            places = torch.from_numpy(positions).to(rows.device)
            if not np.array_equal(positions.reshape(-1), np.arange(len(rows))):
                rows = rows[places]
            rows = torch.view_as_real(rows) if rows.is_complex() else rows
            # A copy: a criterion of the user's may work in place.
            weight = rows.reshape(group.channels, -1).to(torch.float32, copy=True)
            gates, inputs = seen.gates.get(axis), seen.inputs.get(axis)
            if gates is not None:
                gates = gates[:, places].sum(2)
            if inputs is not None:
                inputs = inputs[places].repeat_interleave(weight.shape[1] // places.shape[1], 1)
            found.append(Member(axis, roles.get(axis, "scales"), weight, gates, inputs))
    return found or [Member(Axis("", 0), "scales", torch.ones(group.channels, 1))]


def _values(scores: Tensor, group: Group, members: Sequence[Member]) -> np.ndarray:
    if not isinstance(scores, Tensor):
        raise ConfigError(
            f"a criterion returns a tensor, one finite score per channel; for {group.name!r} it "
            f"returned a {type(scores).__name__}"
        )
    for member in members if not scores.isfinite().all() else ():
        if not member.weight.isfinite().all():
            raise ConfigError(
                f"`{member.axis.tensor}` holds NaN or infinite values, so the channels of "
                f"{group.name!r} cannot be scored; load weights that are finite"
            )
    if scores.shape != (group.channels,) or not bool(scores.isfinite().all()):
        raise ConfigError(
            f"a criterion returns one finite score per channel; for {group.name!r} with "
            f"{group.channels} channels it returned {tuple(scores.shape)}"
            f"{'' if scores.isfinite().all() else ' with NaN or infinite values'}"
        )
    return scores.double().cpu().numpy()
