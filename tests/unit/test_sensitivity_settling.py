"""Evaluations that stop early: how often the stated bounds hold, and what is saved."""

import logging
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunella
from prunella import pipeline
from prunella.config import load
from prunella.errors import ConfigError, TaskError
from prunella.sensitivity import Samplewise, Sensitivity, analyze, samplewise
from prunella.sensitivity.interval import Interval
from prunella.sensitivity.settling import LEAST, WITHIN
from prunella.tasks import Metric
from tests import oracle, tiny_task

RATIOS = (0.25, 0.5, 0.9)


@pytest.mark.parametrize("numbers", ["flips", "rare", "even", "skewed", "one value"])
def test_the_mean_lies_within_the_bounds_as_often_as_stated(numbers: str) -> None:
    random = np.random.default_rng(0)
    count, runs, confidence, missed = 300, 150, 0.8, 0
    for _ in range(runs):
        x = {
            "flips": lambda: random.choice([0, 0.5, 1], count, p=[0.3, 0.6, 0.1]),
            "rare": lambda: random.choice([0, 0.5], count, p=[0.03, 0.97]),
            "even": lambda: random.random(count),
            "skewed": lambda: random.random(count) ** 8,
            "one value": lambda: np.full(count, 0.5),
        }[numbers]()
        found = Interval(count, confidence)
        held = True
        for part in np.split(x, 10):  # ten looks: any of them may be where one stops
            found.add(part)
            low, high = found.bounds
            held &= low - 1e-9 <= x.mean() <= high + 1e-9
        missed += not held
    # 20% are allowed, and 150 runs tell that to 7% or so.
    assert missed / runs <= 1 - confidence + 0.07


def test_bounds_get_nearer_and_end_at_the_mean() -> None:
    x = np.random.default_rng(0).choice([0, 0.5, 1], 2000, p=[0.5, 0.45, 0.05])
    found = Interval(len(x), 0.95)
    widths = []
    for part in np.split(x, 20):
        found.add(part)
        low, high = found.bounds
        widths.append(high - low)
    assert all(after <= before for before, after in pairwise(widths))
    # That of a normal distribution that is looked at once would be 2 * 1.96 * 0.29 / 10 = 0.11.
    assert widths[0] < 0.25
    assert low == high == x.mean()


class Counting:
    """A metric sample by sample, which counts the samples it was computed of."""

    def __init__(self, model: nn.Module, count: int) -> None:
        random = torch.Generator().manual_seed(1)
        images = torch.randn(count, 1, tiny_task.SIZE, tiny_task.SIZE, generator=random)
        with torch.no_grad():
            labels = model.eval()(images).argmax(1)
        labels[: count // 10] = 0  # where the dense model is wrong too
        order = torch.randperm(count, generator=random)
        self.seen = 0
        batches = list(zip(images[order].split(50), labels[order].split(50), strict=True))
        self.samples = Samplewise(batches, self._right)

    @torch.no_grad()
    def _right(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        self.seen += len(batch[1])
        return model(batch[0]).argmax(1) == batch[1]


def setup() -> tuple[nn.Module, prunella.Groups, prunella.Scores]:
    torch.manual_seed(0)
    model = tiny_task.Tiny().eval()
    groups = prunella.couple(prunella.trace(model, torch.zeros(1, 1, 8, 8)))
    return model, groups, prunella.score(model, groups, "magnitude")


def run(metric: Counting, **options: object) -> Sensitivity:
    settings = {"metric": "m", "higher_is_better": True, "ratios": RATIOS, **options}
    return analyze(*setup(), metric.samples, **settings)


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_a_settled_value_is_near_the_one_on_all_samples(
    memory: int, caplog: pytest.LogCaptureFixture
) -> None:
    metric = Counting(setup()[0], 4000)
    whole = run(metric, memory=memory)
    everything, metric.seen = metric.seen, 0
    with caplog.at_level(logging.INFO, "prunella"):
        found = run(metric, memory=memory, confidence=0.95)
    assert found.baseline == pytest.approx(whole.baseline)
    for name, curve in whole.curves.items():
        for value, wanted in zip(found.curves[name], curve, strict=True):
            loss = abs(wanted - whole.baseline)
            assert abs(value - wanted) <= 1.3 * WITHIN * max(loss, LEAST)
    assert metric.seen < 0.7 * everything
    assert "values were settled after" in caplog.text


def test_other_processes_and_later_ones_give_the_same_values(tmp_path: Path) -> None:
    model = setup()[0]
    whole = run(Counting(model, 1000), confidence=0.9)
    assert run(Counting(model, 1000), confidence=0.9, workers=2) == whole
    record = tmp_path / "r.journal"
    run(Counting(model, 1000), confidence=0.9, record=record, ratios=RATIOS[:1])
    metric = Counting(model, 1000)
    assert run(metric, confidence=0.9, record=record) == whole
    # The dense model once more, whose samples the others are compared with.
    assert metric.seen < 1000 + 1000 * 2 * len(whole.curves)


def test_a_record_of_all_samples_is_not_one_of_some(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = setup()[0]
    run(Counting(model, 200), record=tmp_path / "r.journal")
    with caplog.at_level(logging.WARNING, "prunella"):
        run(Counting(model, 200), record=tmp_path / "r.journal", confidence=0.9)
    assert "data changed" in caplog.text


def test_what_cannot_be_settled_is_refused() -> None:
    model, groups, scores = setup()
    metric = Counting(model, 100)
    settings = {"metric": "m", "higher_is_better": True, "confidence": 0.95}
    with pytest.raises(ConfigError, match="a metric that is a mean over samples"):
        analyze(model, groups, scores, metric.samples.__call__, **settings)
    with pytest.raises(ConfigError, match=r"between 0 and 1, as 0\.95 does, got confidence=95"):
        run(metric, confidence=95)
    far = replace(metric.samples, values=lambda model, batch: torch.full((50,), 3.5))
    with pytest.raises(ConfigError, match=r"3\.5, which is not within \(0\.0, 1\.0\)"):
        analyze(model, groups, scores, far, **settings)


def test_a_sample_without_a_number_leaves_the_cut_without_one() -> None:
    metric = Counting(setup()[0], 200)
    dense = oracle.state(setup()[0])

    def odd(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        found = metric.samples.values(model, batch).float()
        whole = oracle.unchanged(model, dense)
        return found if whole else torch.full_like(found, torch.nan)

    judge = replace(metric.samples, values=odd)
    settings = {"metric": "m", "higher_is_better": True, "ratios": RATIOS, "confidence": 0.9}
    found = analyze(*setup(), judge, **settings)
    assert found.baseline > 0
    assert {value for curve in found.curves.values() for value in curve} == {None}
    lost = replace(metric.samples, values=lambda model, batch: torch.full((50,), torch.nan))
    with pytest.raises(TaskError, match="a sample's metric is nan; it must be a finite number"):
        analyze(*setup(), lost, **settings)


def test_a_task_is_judged_sample_by_sample() -> None:
    task = tiny_task.task()
    model = task.model()
    found = samplewise(model, task, "valid")
    assert found(model) == pytest.approx(prunella.tasks.evaluate(model, task, "valid"))
    values = np.concatenate(list(found.each(model)))
    assert len(values) == tiny_task.COUNTS["valid"]
    assert set(values) == {0.0, 1.0}
    plain = torch.cat([labels for _, labels in task.data("valid")])
    mixed = torch.cat([labels for _, labels in found.batches])
    assert not torch.equal(plain, mixed)
    assert torch.equal(plain.sort()[0], mixed.sort()[0])


def test_metrics_that_are_no_means_and_data_that_are_no_samples_are_refused() -> None:
    task = tiny_task.task()
    model = task.model()

    def spread(pairs: object) -> float:
        return float(torch.cat([outputs for outputs, _ in pairs]).std())  # type: ignore[attr-defined]

    odd = replace(task, metric=Metric("spread", True, spread))
    with pytest.raises(ConfigError, match=r"`spread` of task `.*` is not"):
        samplewise(model, odd, "valid")

    def data(split: str) -> list[tuple[Tensor, float]]:
        return [(images, 1.0) for images, _ in task.data(split)]

    with pytest.raises(ConfigError, match="one sample a row, of one shape"):
        samplewise(model, replace(task, data=data), "valid")


def test_a_run_stops_early_where_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = {
        "task.spec": str(Path(__file__).parents[1] / "tiny_task.py"),
        "analyze.ratios": (0.9,),
        "analyze.confidence": 0.9,
        "prune.repair": False,
        "run.folder": str(tmp_path),
        "run.device": "cpu",
    }
    with caplog.at_level(logging.INFO, "prunella"):
        pipeline.analyze(load(None, given))
    assert "values were settled after" in caplog.text
    with pytest.raises(ConfigError, match="confidence"):
        load(None, {**given, "analyze.confidence": 95})
