import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from prunella import report
from prunella.cli import tables
from prunella.record import (
    AttemptRecord,
    CertificateRecord,
    EpochRecord,
    ExperimentRecord,
    FrozenRecord,
    GroupRecord,
    LatencyRecord,
    ModelRecord,
    RoundRecord,
    RunRecord,
    SensitivityRecord,
)
from prunella.report import wording

GROUPS = tuple(GroupRecord(f"layer{1 + i // 3}.{i % 3}.conv1", 16 << i // 3, 9) for i in range(9))


def an_experiment(number, values, state="complete", best=False):
    epochs = tuple(EpochRecord(i, 2.0 / i, value) for i, value in enumerate(values, 1))
    settings = {"lr": 0.01 * (number + 1), "decay": "cosine", "distill": 0.5}
    return ExperimentRecord(number, settings, state, values[-1], epochs, 31.5, best)


def an_attempt(number, share, metric, accepted, reason):
    experiments = (
        an_experiment(0, [metric - 0.05, metric - 0.02, metric], best=True),
        an_experiment(1, [metric - 0.2], state="stopped"),
        an_experiment(2, [metric - 0.07, metric - 0.03, metric - 0.01]),
    )
    return AttemptRecord(
        number, {"macs": share}, int(share * 40_000_000), int(share * 270_000), GROUPS,
        metric - 0.4, metric, experiments, accepted, reason, {"prune": 1.0, "finetune": 95.0},
    )  # fmt: skip


@pytest.fixture
def run():
    return RunRecord(
        task="digits",
        metric="accuracy",
        higher_is_better=True,
        outcome="done",
        config={
            "task": {"spec": "digits", "options": {}},
            "budget": {"macs": 0.5},
            "finetune": {"lr": (0.01, 0.1), "ema": None},
        },
        command="prunella run --task.spec digits --budget.macs 0.5",
        created="2026-01-02 03:04",
        baseline=ModelRecord(40_000_000, 270_000, 0.985, 0.981, LatencyRecord(4.2, 4.1, 4.4, 64)),
        compressed=ModelRecord(19_900_000, 140_000, 0.984, 0.976, LatencyRecord(2.6, 2.5, 2.7, 64)),
        floor=0.98,
        budget={"macs": 0.5},
        sensitivity=SensitivityRecord(
            "accuracy", True, 0.985, (0.25, 0.5, 0.75),
            {g.name: (0.98, 0.97 - 0.02 * i, 0.9 - 0.08 * i) for i, g in enumerate(GROUPS)},
            {g.name: g.channels for g in GROUPS},
        ),
        rounds=(
            RoundRecord(1, (an_attempt(1, 0.8, 0.985, True, "the floor is met"),)),
            RoundRecord(
                2,
                (
                    an_attempt(1, 0.5, 0.971, False, "accuracy 0.971 is below the floor of 0.98"),
                    an_attempt(2, 0.65, 0.983, True, "the floor is met"),
                ),
            ),
            RoundRecord(3, (an_attempt(1, 0.4975, 0.984, True, "the budget is met"),)),
        ),
        groups=GROUPS,
        frozen=(
            FrozenRecord("fc", 10, ("reaches an output (`aten.linear` in `fc`)",)),
            FrozenRecord("stem", 3, ("meets the model's input (`aten.conv2d` in `stem`)",)),
        ),
        certificate=CertificateRecord(4.4e-16, "float64", "12 comparisons, the worst 4.4e-16"),
        latency_text="1.62x faster (1.58x to 1.66x)",
        epochs=26,
        stages={"trace": 0.8, "analyze": 12.0, "rounds": 384.0, "test": 3.0},
        environment={"torch": "2.14", "python": "3.11", "device": "cpu"},
        notes=("the data changed since the baseline",),
    )  # fmt: skip


class Page(HTMLParser):
    """Collect what a browser would see: ids, links out, the text, and whether tags close."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})

    def __init__(self, text):
        super().__init__()
        self.ids, self.addresses, self.open, self.words, self.scripts = [], [], [], [], []
        self.feed(text)
        assert not self.open, f"tags left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids += [given["id"]] if "id" in given else []
        self.addresses += [given[name] for name in ("src", "href") if name in given]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif "style" not in self.open:
            self.words.append(data.strip())

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def test_one_file_that_asks_no_network(run, tmp_path):
    path = report.write(tmp_path / "new" / "folder", run)
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert all(address.startswith("#") for address in page.addresses)
    assert "default-src 'none'" in text
    assert "@import" not in text
    assert "url(" not in text.split("</style>")[0]
    assert len(set(page.ids)) == len(page.ids)
    assert set(page.addresses) <= {f"#{name}" for name in page.ids}


def test_the_page_tells_the_whole_run(run):
    text = Page(report.render(run)).text
    for told in (
        "digits at 49.8% of its MACs",
        "budget met",
        "40 M 19.9 M \N{MINUS SIGN}50.2%",
        "270 k 140 k \N{MINUS SIGN}48.1%",
        "accuracy (test) 0.981 0.976 \N{MINUS SIGN}0.005",
        "4.2 ms 2.6 ms 1.62x faster (1.58x to 1.66x)",
        "accuracy 0.971 is below the floor of 0.98",
        "26 epochs in all",
        "stopped early",
        "reaches an output ( aten.linear in fc )",
        "4.4e-16 largest relative error, float64",
        "12 comparisons, the worst 4.4e-16",
        "finetune.lr 0.01, 0.1",
        "prunella run --task.spec digits --budget.macs 0.5",
        'prunella.load("final", model)',
        "the data changed since the baseline",
    ):
        assert told in text


def test_every_chart_has_its_place_and_its_data(run):
    page = Page(report.render(run))
    drawn = json.loads(page.scripts[0])
    assert [chart["name"] for chart in drawn] == [
        "way-down", "healing", "learning-1-1", "learning-2-1", "learning-2-2", "learning-3-1",
        "heat", "curves",
    ]  # fmt: skip
    assert {f"chart-{chart['name']}" for chart in drawn} <= set(page.ids)
    charts = {chart["name"]: chart["figure"] for chart in drawn}
    kept, again = charts["way-down"]["data"]
    assert kept["x"] == [100.0, 80.0, 65.0, 49.75]
    assert kept["y"] == [0.985, 0.985, 0.983, 0.984]
    assert again["x"] == [50.0]
    lost = charts["heat"]["data"][0]["z"]
    assert lost[0][0] == pytest.approx(0.005)
    assert lost[8][2] == pytest.approx(0.985 - 0.9 + 0.64)


def test_lost_is_positive_for_a_metric_where_lower_is_better(run):
    measured = replace(
        run.sensitivity, higher_is_better=False, baseline=1.0, ratios=(0.5,), curves={"a": (1.5,)}
    )
    lower = replace(run, sensitivity=measured, higher_is_better=False)
    heat = json.loads(Page(report.render(lower)).scripts[0])[-2]
    assert heat["figure"]["data"][0]["z"] == [[0.5]]
    row = wording.headline_rows(lower)[0]
    assert row.good


def test_where_the_metric_was_no_number_is_marked(run):
    curves = {"a": (0.9, None), "b": (0.98, 0.5)}
    measured = replace(run.sensitivity, ratios=(0.25, 0.5), curves=curves)
    gaps = replace(run, sensitivity=measured)
    gaps = RunRecord.from_data(gaps.to_data())
    assert gaps.sensitivity.curves == curves
    page = Page(report.render(gaps))
    heat, lines = json.loads(page.scripts[0])[-2:]
    cells, crosses = heat["figure"]["data"]
    assert cells["z"][0][1] == cells["z"][1][1] == pytest.approx(0.485)
    assert "was no finite number" in cells["text"][0][1]
    assert (crosses["x"], crosses["y"]) == (["50.0%"], [0])
    assert "A cross: the metric was no finite number there, or the model raised" in page.text
    assert lines["figure"]["data"][0]["y"] == [0.985, 0.9, None]
    assert "A cross" not in Page(report.render(run)).text


def test_a_run_that_has_just_begun_is_shown(run):
    begun = replace(
        run, outcome="partial", compressed=None, floor=None, sensitivity=None, rounds=(), groups=(),
        frozen=(), certificate=None, latency_text="", epochs=0, stages={}, environment={}, notes=(),
    )  # fmt: skip
    page = Page(report.render(begun))
    assert "under way" in page.text
    assert "Go on where this stopped" in page.text
    assert "prunella.load" not in page.text
    assert json.loads(page.scripts[0]) == []
    assert len(page.scripts) == 2, "no chart, so no chart library"


def test_a_round_under_way_is_shown(run):
    attempt = AttemptRecord(1, {"macs": 0.5}, 20_000_000, 1000, GROUPS)
    now = replace(run, outcome="partial", rounds=(RoundRecord(1, (attempt,)),))
    assert (
        "50.0% MACs 50.0% 0.4% \N{EN DASH} \N{EN DASH} under way" in Page(report.render(now)).text
    )


def test_a_run_that_stopped_at_the_floor_says_so(run):
    text = Page(report.render(replace(run, outcome="floor"))).text
    assert "stopped at the floor" in text
    assert (
        "the smallest model found whose accuracy on the validation data is not worse than 0.98"
        in text
    )


def test_names_and_reasons_cannot_become_markup(run):
    evil = "</script><img src=x onerror=alert(1)>"
    measured = replace(run.sensitivity, curves={evil: (0.9, 0.8, 0.7)}, channels={evil: 4})
    hurt = replace(
        run, task=evil, frozen=(FrozenRecord(evil, 1, (evil,)),), sensitivity=measured,
        groups=(GroupRecord(evil, 4, 2),), notes=(evil,),
    )  # fmt: skip
    text = report.render(hurt)
    assert evil not in text
    assert "img" not in Page(text).open
    assert evil in Page(text).text
    assert wording.ticks("`<b>` & c") == "<code>&lt;b&gt;</code> &amp; c"


def test_a_report_replaces_the_one_before(run, tmp_path):
    report.write(tmp_path, run)
    report.write(tmp_path, replace(run, task="other"))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "other at 49.8%" in text
    assert "digits at" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "\N{EN DASH}"), (0, "0"), (999, "999"), (40_813_184, "40.81 M"), (999_960, "1 M"),
     (1_000, "1 k"), (4.1e9, "4.1 G")],
)  # fmt: skip
def test_count(value, text):
    assert wording.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.04, "0.0 s"), (59.7, "1 min 0 s"), (75, "1 min 15 s"), (3725, "1 h 2 min")],
)
def test_duration(value, text):
    assert wording.duration(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "\N{EN DASH}"), (True, "yes"), ((0.01, 0.1), "0.01, 0.1"),
     ({"depth": 20}, "depth = 20"), (-0.5, "\N{MINUS SIGN}0.5"), ("cosine", "cosine")],
)  # fmt: skip
def test_setting(value, text):
    assert wording.setting(value) == text


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (0.8989, 0.89890085, "0"),  # once it was written in full
        (0.7932, 0.7924158, f"{wording.MINUS}0.0008"),
        (0.7153, 0.6672, f"{wording.MINUS}0.0481"),
        (93.44, 92.58, f"{wording.MINUS}0.86"),
        (0.0, 0.0, "0"),
        (1234.5, 1230.0, f"{wording.MINUS}4"),
        (0.5, float("nan"), wording.NONE),
    ],
)
def test_a_difference_ends_where_the_figures_beside_it_do(before, after, said):
    assert wording.difference(after, before) == said


def test_a_time_within_the_noise_has_no_share_in_the_table(run):
    console = Console(width=200, file=io.StringIO())
    console.print(tables.summary(replace(run, latency_text="no difference beyond the noise (x)")))
    rows = {line.split()[0]: line for line in console.file.getvalue().splitlines() if line.strip()}
    assert rows["Latency"].rstrip().endswith("no difference beyond the noise (x)")
    assert rows["MACs"].rstrip().endswith("(49.8% left)")


def test_analyze_lists_how_far_the_metric_moves(run):
    curves = {"a": (0.98, 0.9), "b": (0.97, None)}
    channels = {"a": 64, "b": 8}
    measured = SensitivityRecord("accuracy", True, 0.98, (0.25, 0.5), curves, channels)
    console = Console(width=200, file=io.StringIO())
    console.print(tables.sensitivity(replace(run, sensitivity=measured)))
    said = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["group", "channels", "25%", "gone", "50%", "gone"] in said
    assert ["a", "64", "0", f"{wording.MINUS}0.08"] in said
    assert ["b", "8", f"{wording.MINUS}0.01", "no", "number"] in said
