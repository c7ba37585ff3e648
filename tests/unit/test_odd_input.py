"""What users hand in that is a little off: lone samples, odd numbers, one name for a list."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import prunella
from prunella.allocating.allocation import allocate_and_bound
from prunella.calibration import calibration
from prunella.errors import BudgetError, ConfigError, NothingToPruneError


def convs(*widths: int) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for ins, outs in zip((3, *widths), widths, strict=False):
        layers += [nn.Conv2d(ins, outs, 3, padding=1), nn.BatchNorm2d(outs), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 5)]
    return nn.Sequential(*layers, *head).eval()


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2)
    )


IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sizes", [(32, 32, 1), (16, 1), (1,) * 20, (1,), (1, 1)])
def test_batches_of_one_sample_calibrate(sizes: tuple[int, ...]) -> None:
    random = torch.Generator().manual_seed(1)
    images = [torch.randn(n, 3, 8, 8, generator=random) for n in sizes]
    result = prunella.prune(convs(16, 24), IMAGE, macs=0.5, calibration=images)
    assert result.certificate.holds
    rows = [torch.randn(n, 8, generator=random) for n in sizes]
    result = prunella.prune(mlp(), rows[0], macs=0.5, calibration=rows)
    assert all(bool(p.isfinite().all()) for p in result.model.parameters())


def test_single_samples_repair_as_well_as_one_batch() -> None:
    # As many samples, given one by one, are two halves just the same.
    images = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    net = convs(16, 24)
    errors = []
    for batches in ([images], list(images.split(1))):
        pruned = prunella.prune(net, IMAGE, macs=0.6, calibration=batches).model.eval()
        with torch.no_grad():
            errors.append(float((pruned(images) - net(images)).square().mean()))
    assert errors[1] < 1.5 * errors[0]


def test_calibration_that_is_read_as_it_is_needed_stays_so() -> None:
    class Reading(Sequence[Any]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: Any) -> Any:
            return ((range(3)[index] + torch.rand(2, 3),), {})

    data = prunella.Calibration(Reading())
    assert calibration(data) is data


def test_calibration_that_is_no_number_or_empty_is_named() -> None:
    good = torch.randn(4, 3, 8, 8)
    with pytest.raises(ConfigError, match=r"batch 1 of .* holds what is not a number"):
        prunella.prune(convs(8), IMAGE, macs=0.5, calibration=[good, good * math.nan])
    with pytest.raises(ConfigError, match=r"batch 1 .* is empty, of shape \(0, 3, 8, 8\)"):
        prunella.prune(convs(8), IMAGE, macs=0.5, calibration=[good, good[:0]])


@pytest.mark.parametrize("share", [0.5, 0.12, 0.06, 0.03])
def test_wide_layers_use_up_a_budget(share: float) -> None:
    net = nn.Sequential(nn.Linear(30, 1000), nn.ReLU(), nn.Linear(1000, 5))
    plan = prunella.prune(net, torch.randn(2, 30), macs=share).plan
    channel = 35  # multiply-accumulates of one
    limit = int(share * plan.before.macs)
    assert limit - channel < plan.after.macs <= limit


class Rows(nn.Module):
    """Wide rows that keep equally many channels, as conv groups and heads do."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.rows, self.inner = nn.Conv2d(3, width, 1), nn.Conv2d(width, width, 1, groups=rows)
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(self.rows(x).relu()).relu().mean((2, 3)))


@pytest.mark.parametrize("share", [0.5, 0.21, 0.07])
@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("rows", [2, 4])
def test_wide_rows_use_up_a_budget(rows: int, multiple: int, share: float) -> None:
    result = prunella.prune(Rows(rows, 1024), IMAGE, macs=share, multiple_of=multiple)
    before, after = result.plan.before.macs, result.plan.after.macs
    assert (0.98 if multiple > 1 else 0.99) * share * before < after <= share * before
    assert all(len(kept) % max(rows, multiple) == 0 for kept in result.plan.channels.values())


def test_one_huge_damage_does_not_drown_the_others() -> None:
    net = convs(8, 24, 24)
    groups = prunella.couple(prunella.trace(net, IMAGE))
    scores = prunella.score(net, groups)
    steep, *_ = (g.name for g in groups)

    def damage(huge: float):
        def of(name: str, kept: int) -> float:
            whole = groups[name].channels
            if name == steep and kept <= 3:
                return huge
            return (1 - kept / whole) ** 2 * (1 + len(name))

        return of

    budget = prunella.Budget(macs=0.6)
    modest = allocate_and_bound(groups, scores, budget, damage(100.0))
    for huge in (1e6, 1e10, 3.4e38):
        found = allocate_and_bound(groups, scores, budget, damage(huge))
        assert found.damage == pytest.approx(modest.damage, rel=1e-3)
        assert found.gap is not None
        assert found.gap < 0.01


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_damage_that_is_not_finite_is_named(bad: float) -> None:
    net = convs(8, 12)
    groups = prunella.couple(prunella.trace(net, IMAGE))
    with pytest.raises(ConfigError, match=r"predicted damage of group '0' with . channels kept is"):
        prunella.allocate(
            groups,
            prunella.score(net, groups),
            prunella.Budget(macs=0.5),
            lambda name, kept: bad if name == "0" and kept < 4 else 1 - kept / 12,
        )


def test_a_lone_name_is_one_exclusion() -> None:
    layers = [m for _ in range(6) for m in (nn.Linear(8, 8), nn.ReLU())]
    net = nn.Sequential(*layers, nn.Linear(8, 2))
    plan = prunella.prune(net, torch.randn(2, 8), ratio=0.5, exclude="10").plan
    assert "0" in plan.channels
    assert "10" not in plan.channels
    with pytest.raises(ConfigError, match="entry 'zz' matches no module"):
        prunella.prune(net, torch.randn(2, 8), ratio=0.5, exclude="zz")
    kinds = prunella.prune(convs(8, 12), IMAGE, ratio=0.5, exclude=nn.Linear).plan.channels
    assert list(kinds) == ["0"]


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`form` is .*'grpah'"):
        prunella.prune(convs(8), IMAGE, ratio=0.5, form="grpah")


def test_candidates_where_all_is_frozen_say_why() -> None:
    with pytest.raises(NothingToPruneError, match="every group is frozen"):
        prunella.prune(
            nn.Linear(4, 5),
            torch.randn(1, 4),
            macs=0.5,
            calibration=torch.randn(9, 4),
            candidates=4,
        )


def test_auto_tries_other_criteria_too() -> None:
    data = [torch.randn(8, 3, 8, 8) for _ in range(4)]
    search = prunella.prune(
        convs(16, 24), IMAGE, macs=0.5, calibration=data, candidates=6, criterion="auto"
    ).summary.search
    assert search is not None
    assert len({candidate.criterion for candidate in search.candidates}) > 1


def test_weights_that_are_no_numbers_are_named() -> None:
    net = mlp()
    net[2].weight.data[0, 0] = math.nan
    with pytest.raises(ConfigError, match=r"`2.weight` holds NaN .*load weights that are finite"):
        prunella.prune(net, torch.randn(1, 8), ratio=0.5)


def test_a_criterion_may_work_in_place() -> None:
    net = convs(8, 12)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    prunella.prune(net, IMAGE, ratio=0.5, criterion=lambda ms: ms[0].weight.mul_(0).sum(1))
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("macs", [1.0, 10**9])
def test_a_budget_that_the_dense_model_keeps_says_so(macs: float) -> None:
    with pytest.raises(
        NothingToPruneError, match=r"the dense model keeps the budget as it is: .* of"
    ):
        prunella.prune(convs(8, 12), IMAGE, macs=macs)


def test_multiples_that_leave_no_choice_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(BudgetError, match=r"lower `multiple_of`, or exclude less") as caught:
        prunella.prune(convs(16, 24), IMAGE, macs=0.5, multiple_of=32)
    assert "no choice but all channels to 0 (16 channels), 3 (24 channels)" in str(caught.value)
    prunella.prune(convs(16, 64), IMAGE, macs=0.8, multiple_of=32)
    assert "no choice but all channels to 0 (16 channels)" in caplog.text


@pytest.mark.parametrize("odd", [4.0, math.nan, math.inf, True, 0])
def test_multiples_are_whole_numbers(odd: float) -> None:
    with pytest.raises(ConfigError, match="multiple_of is a whole number"):
        prunella.prune(convs(8), IMAGE, macs=0.5, multiple_of=odd)


def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    def plan(kind: Any) -> prunella.Plan:
        options = {"candidates": kind(2), "seed": kind(1), "workers": kind(1)}
        data = list(torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)).split(4))
        return prunella.prune(convs(16, 16), data[0], macs=0.5, calibration=data, **options).plan

    assert plan(np.int64) == plan(int)


def test_a_regular_expression_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match=r"'re:\[' is no regular expression"):
        prunella.config.PruneSection(exclude="re:[")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"seed": -1}, r"whole number >= 0, got seed=-1"),
        ({"seed": 0.5}, r"whole number >= 0, got seed=0.5"),
        ({"workers": 2.5}, r"whole number of processes .* got workers=2.5"),
        ({"runtime": "torch"}, r"`runtime` is for a budget on latency, and there is none"),
    ],
)
def test_options_of_prune_that_make_no_sense_are_named(
    options: dict[str, object], match: str
) -> None:
    data = torch.randn(8, 3, 8, 8)
    with pytest.raises(ConfigError, match=match):
        prunella.prune(convs(8), IMAGE, macs=0.5, calibration=data, candidates=2, **options)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (np.array([1.0] * 15 + [math.nan]), r"'0' .* each of its 16 channels.*\(16,\) with NaN"),
        (np.arange(12.0), r"'0' .* each of its 16 channels.* shape \(12,\)"),
        (None, r"no scores for group '0'.* score the groups"),
    ],
)
def test_scores_of_a_users_own_are_checked(values: np.ndarray | None, match: str) -> None:
    net = mlp()
    groups = prunella.couple(prunella.trace(net, torch.randn(1, 8)))
    found = dict(prunella.score(net, groups).values)
    found = {name: values if name == "0" else v for name, v in found.items()}
    scores = prunella.Scores("mine", {n: v for n, v in found.items() if v is not None})
    with pytest.raises(ConfigError, match=match):
        prunella.allocate(groups, scores, 0.5)
    with pytest.raises(ConfigError, match=match):
        prunella.analyze(
            net, groups, scores, lambda model: 0.0, metric="none", higher_is_better=True
        )


@pytest.mark.parametrize("settings", [{}, {"candidates": 4}])
def test_no_group_loses_more_than_the_largest_ratio(settings: dict[str, Any]) -> None:
    """A curve that says a group is worth nothing would leave one channel of it."""
    torch.manual_seed(0)
    net = convs(32, 32, 32).eval()
    images = torch.randn(16, 3, 8, 8)

    def kept(**more: Any) -> dict[str, tuple[int, int]]:
        groups = prunella.couple(prunella.trace(net, IMAGE))
        worthless = min(group.name for group in groups)
        result = prunella.prune(
            net,
            IMAGE,
            macs=0.6,
            calibration=images,
            damage=lambda name, left: 0.0 if name == worthless else 32.0 - left,
            **settings,
            **more,
        )
        assert result.plan.after.macs <= 0.6 * result.plan.before.macs
        return {n: (len(k), groups[n].channels) for n, k in result.plan.channels.items()}

    free, bound = kept(), kept(max_ratio=0.5)
    assert min(left / all_ for left, all_ in free.values()) < 0.5
    assert min(left / all_ for left, all_ in bound.values()) >= 0.5


def test_seconds_are_of_a_search() -> None:
    with pytest.raises(ConfigError, match="give `candidates`"):
        prunella.prune(convs(16), IMAGE, macs=0.5, calibration=IMAGE, seconds=5)
