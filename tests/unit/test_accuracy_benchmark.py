"""The benchmark of accuracy: its tables, its bisection, and what is still to do. No data needed."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import prunella
from benchmarks import record
from benchmarks.accuracy import page, reference, remembering, rows, running, training
from benchmarks.accuracy.case import Case, Method, accuracy, augmented, recalibrated
from prunella.tasks.cifar10 import MEAN, STD


def row(setting, removed, seed=0, **found):
    named = {"network": "net", "tool": "peer", "setting": setting, "bn": False}
    return {
        **named,
        "removed": removed,
        "seed": seed,
        "macs": 40,
        "images": 0,
        "seconds": 1.0,
    } | found


def method(setting, **options):
    return Method("peer", setting, lambda case: iter(()), recalibrates=False, **options)


@pytest.fixture
def case():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    ).eval()
    images = torch.randn(24, 3, 8, 8)
    with torch.no_grad():
        labels = net(images).argmax(1)
    return Case("net", net, images[:1], images, labels, 0, (20, 50))


def test_a_group_gets_the_last_ratio_before_its_first_violation():
    curves = {"a": (0.9, 0.8, 0.89), "b": (0.5, 0.5, 0.5), "c": (0.95, 0.95, 0.95)}
    ratios = reference.ratios_within(curves, (0.1, 0.2, 0.3), 0.9, 0.06)
    assert ratios == {"a": 0.1, "b": 0.0, "c": 0.3}  # a gain counts as a change, as there


def test_bisection_finds_the_smallest_threshold_within_the_limit():
    found = reference.bisect(lambda t: 100 if t < 0.37 else 60, 70)
    assert found == pytest.approx(0.37, abs=1e-6)
    assert found >= 0.37
    with pytest.raises(RuntimeError, match="leaves 100 MACs of 70 allowed"):
        reference.bisect(lambda t: 100, 70)


def test_first_l1_scores_the_rows_of_the_first_convolution(case):
    groups = prunella.couple(prunella.trace(case.dense, case.example))
    scores = reference.first_l1(case, groups)
    wanted = case.dense[0].weight.detach().abs().sum((1, 2, 3)).double().numpy()
    np.testing.assert_allclose(scores.values["0"], wanted, rtol=1e-6)


def test_the_rule_meets_every_budget(case, tmp_path, monkeypatch):
    monkeypatch.setattr(reference.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(reference, "STEM", "none")
    found = dict(reference.prune(case, where="all"))
    assert list(found) == [20, 50]
    for removed, model in found.items():
        assert prunella.count_macs(model, case.example) <= case.limit(removed)


def test_accuracy_and_recalibration_leave_the_model_alone(case):
    before = {name: value.clone() for name, value in case.dense.state_dict().items()}
    assert accuracy(case.dense, case.images, case.labels, bf16=False) == 100
    fresh = recalibrated(case.dense, case.images, seed=1)
    for name, value in case.dense.state_dict().items():
        assert torch.equal(value, before[name])
    wanted = case.dense[0](augmented(case.images, 1)).detach().mean((0, 2, 3))
    torch.testing.assert_close(fresh[1].running_mean, wanted, rtol=1e-4, atol=1e-5)
    assert not fresh.training


def test_augmented_images_are_shifted_over_black_and_flipped():
    black = (0 - torch.tensor(MEAN)) / torch.tensor(STD)
    images = black.view(1, 3, 1, 1).repeat(64, 1, 8, 8)
    torch.testing.assert_close(augmented(images, 0), images)
    images[:, :, 4, 3] = 5.0
    rows, columns = (augmented(images, 0)[:, 0] > 4).nonzero()[:, 1:].unbind(1)
    assert set(rows.tolist()) == set(range(8)), "4 up to 4 down, the last out of sight"
    assert set(columns.tolist()) == set(range(8))


def test_settings_are_screened_before_the_near_ones_are_tested():
    ways = [method(name, screened=True) for name in "abc"]
    done = []

    def due(way, seed=0, screening=False):
        return rows.due(done, way, ("net", seed), [50], screening=screening)

    assert [due(way, screening=True) for way in ways] == [{(50, False): False}] * 3
    assert [due(way) for way in ways] == [{}] * 3
    done += [row(n, 50, screened=s) for n, s in (("a", 80.0), ("b", 78.5), ("c", 70.0))]
    assert [due(way, screening=True) for way in ways] == [{}] * 3
    assert [due(way) for way in ways] == [{(50, False): True}] * 2 + [{}]
    for name, tested in (("a", 75.0), ("b", 76.0)):
        done[:] = rows.merged(done, row(name, 50, accuracy=tested))
    assert len(done) == 3
    assert [due(way) for way in ways] == [{}] * 3
    # With further seeds: only what was best on test, and only if the seed matters.
    assert [due(replace(way, seeded=True), seed=1) for way in ways] == [{}, {(50, False): True}, {}]
    assert [due(way, seed=1) for way in ways] == [{}] * 3


def test_rows_survive_a_kill_and_failures_are_done_again(tmp_path):
    out = tmp_path / "result"
    done = [row("a", 50, accuracy=75.0), row("b", 50, failure="no plan")]
    record.write(done, out, rows.PACKAGES, lambda found: page.page(found, "no-finetune"))
    assert record.read(out) == done[:1]
    assert "FAILED: no plan" in out.with_suffix(".md").read_text()


def test_the_page_has_means_and_spreads():
    dense = row("", 0, accuracy=91.0) | {"tool": "dense", "params": 10, "accuracy, float32": 91.1}
    done = [dense, *(row("a", 50, seed, accuracy=70.0 + seed) for seed in range(3))]
    text = page.page(
        [found | {"macs": 100 if found is dense else 45} for found in done], "ablation"
    )
    assert "| peer | a |  | 71.00 ± 1.00 | 5.0 | 0 | 3 | 1 |" in text
    assert "{" not in text  # the protocol's figures are filled in


def test_rows_are_heard_as_they_are_said_and_failures_too():
    program = f"print('{running._MARK}' + '{{\"a\": 1}}'); raise SystemExit('broken')"
    heard = running.listen([sys.executable, "-c", program], 60)
    assert next(heard) == json.loads('{"a": 1}')
    with pytest.raises(RuntimeError, match="broken"):
        next(heard)
    with pytest.raises(RuntimeError, match="more than 1 seconds"):
        list(running.listen([sys.executable, "-c", "import time; time.sleep(60)"], 1))


def test_a_row_over_the_budget_is_a_failure(case):
    spender = replace(method("spender"), run=lambda case: iter([(50, case.dense)]))
    with pytest.raises(RuntimeError, match="more than the budget"):
        list(running.measure(case, spender, {(50, False): False}))


def test_a_method_in_rounds_prunes_and_trains_in_turns_and_meets_the_budget_of_the_dense(
    case, monkeypatch
):
    shares = []

    def run(case):
        for removed in case.budgets:
            share = case.share(removed)
            shares.append(share * prunella.count_macs(case.dense, case.example))
            yield removed, prunella.prune(case.dense, case.example, macs=share).model

    lengths = []

    def trained(case, model, method, removed):
        lengths.append(method.training.last)
        return model, {}

    monkeypatch.setattr(training, "trained", trained)
    rounds = training.Training(10, before=(2, 3))
    [(removed, model)] = training._again(
        replace(method("a", training=rounds), run=run), rounds, replace(case, budgets=(50,))
    )
    dense = prunella.count_macs(case.dense, case.example)
    assert removed == 50
    assert lengths == [2, 3]
    assert shares == pytest.approx([dense * 0.5 ** (1 / 3), dense * 0.5 ** (2 / 3), case.limit(50)])
    assert prunella.count_macs(model, case.example) <= case.limit(50)


def test_a_remembering_teacher_says_what_the_network_says_and_is_asked_once(
    case, monkeypatch, tmp_path
):
    monkeypatch.setattr(remembering.tempfile, "gettempdir", lambda: str(tmp_path))
    asked = []
    case.dense.register_forward_hook(lambda *_: asked.append(1))
    other = torch.randn(5, 3, 8, 8)
    with torch.inference_mode():
        wanted = [case.dense(x) for x in (case.images, other)]
        asked.clear()
        for _ in range(2):  # the second finds the file of the first
            teacher = remembering.Remembering(case.dense)
            for x, logits in zip((case.images, other), wanted, strict=True):
                layout = x.contiguous(memory_format=torch.channels_last)
                torch.testing.assert_close(teacher(layout), logits)
    assert len(asked) == 2
