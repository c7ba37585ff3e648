"""One-step mode: many plans within the budget, judged after repair, the best one kept."""

import time

import pytest
import torch
from torch import Tensor, nn

import prunella
from prunella.calibration import Calibration, calibration
from prunella.errors import BudgetError, ConfigError
from prunella.model.structure import tensors
from prunella.pruning import searching
from prunella.pruning.searching import Search, Task, halves, search
from prunella.repairing.compensating import compensate
from prunella.repairing.divergence import divergence_from, softened
from prunella.repairing.reconstructing import reconstruct
from prunella.sensitivity.valuing import value

BUDGET = prunella.Budget(macs=0.5)
COUNT = 5  # more than a round


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """A residual network that has something to choose."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.up = nn.Conv2d(12, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.down = nn.Conv2d(16, 12, 1)
        self.wide = nn.Sequential(
            nn.Conv2d(12, 20, 1), nn.ReLU(), nn.Conv2d(20, 18, 3, padding=1), nn.ReLU(),
            nn.Conv2d(18, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.head = nn.Linear(16 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.down(torch.relu(self.norm(self.up(x)))))
        return 30 * self.head(self.wide(x).flatten(1))


@pytest.fixture(scope="module", autouse=True)
def _one_thread_and_short_rounds():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # or several processes would not compute the same
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "_ROUND", 3)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    for seed in range(5):
        model(images(32, 50 + seed))
    return model  # in training mode, and to be left so


@pytest.fixture(scope="module")
def task(net: nn.Module) -> Task:
    x = images(2)
    data = calibration([images(32, seed) for seed in range(4)])
    groups = prunella.couple(prunella.trace(net, x))
    found = reconstruct(net, groups, prunella.score(net, groups), data)
    orders = [found.scores, prunella.score(net, groups, "random")]
    damage = value(net, groups, found, data).damage
    return Task(net, groups, orders, BUDGET, damage, data, ((x,), {}))


@pytest.fixture(scope="module")
def done(task: Task) -> Search:
    return search(task, COUNT, seed=1)


def results(found: Search) -> list[tuple[object, ...]]:
    return [(c.plan.channels, c.criterion, c.predicted, c.divergence) for c in found.candidates]


def test_every_plan_is_another_one_within_the_budget(done):
    assert len(done.candidates) == COUNT
    plans = [candidate.plan for candidate in done.candidates]
    assert all(plan.after.macs <= 0.5 * plan.before.macs for plan in plans)
    assert len({str(plan.channels) for plan in plans}) == COUNT


def test_the_first_is_the_plan_without_a_search_and_predicted_least(task, done):
    plan = prunella.allocate(task.groups, task.orders[0], BUDGET, task.damage)
    assert done.first.plan == plan
    assert done.first.predicted <= min(c.predicted for c in done.candidates) * (1 + 1e-9)


def test_the_best_is_no_worse_than_the_first_on_what_judges(task, done):
    # The judgement is that of repairing and cutting by hand.
    repairing, judging = halves(task.data)
    judge = divergence_from(task.model, judging, softened)
    by_hand = []
    for candidate in (done.best, done.first):
        repaired = compensate(task.model, candidate.plan, repairing)
        pruned = prunella.transform(repaired, candidate.plan).eval()
        by_hand.append(judge(pruned))
        assert by_hand[-1] == pytest.approx(candidate.divergence, rel=1e-4)
    assert by_hand[0] <= by_hand[1]
    assert done.best.divergence == min(c.divergence for c in done.candidates)


def test_orders_of_other_criteria_are_tried(done):
    assert [c.criterion for c in done.candidates[:2]] == ["reconstruction", "random"]


def test_same_seed_same_plans_in_any_number_of_processes(task, done):
    assert results(search(task, COUNT, seed=1, workers=2)) == results(done)
    assert results(search(task, 3, seed=1)) == results(done)[:3]
    other = results(search(task, 3, seed=2))
    assert other[:2] == results(done)[:2]  # the first, and that of the other order
    assert other[2] != results(done)[2]


def test_when_time_is_up_the_first_plan_is_there(task, done):
    found = search(task, 1000, seed=1, seconds=1e-9)
    assert results(found) == results(done)[:1]
    start = time.monotonic()
    some = search(task, 100_000, seed=1, seconds=3.0)
    assert time.monotonic() - start < 60  # one plan beyond the limit at most, on a busy machine
    count = min(len(some.candidates), COUNT)
    assert results(some)[:count] == results(done)[:count]


def test_there_may_be_fewer_plans_than_asked_for():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    result = prunella.prune(model, x[:2], macs=0.7, calibration=x, candidates=50)
    assert 1 <= len(result.summary.search.candidates) < 10


def test_in_one_call_model_and_data_are_left_alone(net):
    batches = [images(32, seed) for seed in range(4)]
    copies = [batch.clone() for batch in batches]
    before = {name: tensor.clone() for name, tensor in tensors(net).items()}
    random = torch.get_rng_state()
    result = prunella.prune(net, images(2), macs=0.5, calibration=batches, candidates=4, seed=3)
    assert torch.equal(random, torch.get_rng_state())
    assert net.training
    assert all(torch.equal(before[name], t) for name, t in tensors(net).items())
    assert all(torch.equal(a, b) for a, b in zip(batches, copies, strict=True))
    tried = result.summary.search
    assert result.plan.channels == tried.best.plan.channels
    assert f"best of {len(tried.candidates)} plans" in str(result.summary)
    assert {c.criterion for c in tried.candidates} >= {"reconstruction", "reading", "fisher"}


def test_one_candidate_is_no_search(net):
    result = prunella.prune(net, images(2), macs=0.5, calibration=images(64), candidates=1)
    assert result.summary.search is None


def test_a_criterion_that_is_named_is_kept_to(net):
    result = prunella.prune(
        net, images(2), macs=0.5, calibration=images(64), criterion="magnitude", candidates=3
    )
    assert {c.criterion for c in result.summary.search.candidates} == {"magnitude"}


def test_halves_share_nothing_and_leave_nothing_out():
    batches = [images(3, seed) for seed in range(5)]
    one, other = halves(calibration(batches))
    assert len(one.batches) + len(other.batches) == 5
    lone, rest = halves(calibration(images(7)))
    both = torch.cat([lone.batches[0][0][0], rest.batches[0][0][0]])
    assert torch.equal(both, images(7))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"candidates": 0}, "at least one"),
        ({"candidates": 2, "calibration": None}, "calibration"),
        ({"candidates": 2, "repair": False}, "repair"),
        ({"candidates": 2, "macs": None, "ratio": 0.5}, "budget"),
        ({"candidates": 2, "seconds": 0.0}, "seconds"),
        ({"candidates": 2, "workers": 0}, "workers"),
        ({"candidates": 2, "calibration": images(1)}, "two batches"),
    ],
)
def test_what_cannot_be_searched_is_said(net, settings, said):
    with pytest.raises(ConfigError, match=said):
        prunella.prune(net, images(2), **{"macs": 0.5, "calibration": images(64), **settings})


def test_a_budget_nobody_can_meet_is_an_error_at_once(task):
    tight = Task(task.model, task.groups, task.orders, prunella.Budget(macs=10), None, task.data,
                 task.inputs)  # fmt: skip
    with pytest.raises(BudgetError):
        search(tight, COUNT)


def test_samples_are_limited(task, monkeypatch):
    monkeypatch.setattr(searching, "SAMPLES", 32)
    many = Calibration(list(task.data.batches) * 3)
    limited = Task(task.model, task.groups, task.orders, BUDGET, task.damage, many, task.inputs)
    assert len(search(limited, 2).candidates) == 2
