"""The command line: what it prints where, what it teaches, what it says when things go wrong."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from prunella.cli import app, speaking, tables
from prunella.cli.speaking import split
from prunella.cli.verbs import VERBS
from prunella.config import keys

TASK = Path(__file__).parents[1] / "tiny_task.py"
QUICK = [
    "--prune.rounds=1",
    "--analyze.ratios=0.5",
    "--finetune.epochs=1",
    "--finetune.trials=1",
    "--run.latency_seconds=0.05",
    "--run.device=cpu",
]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def quick(verb: str, folder: Path, *more: str) -> Result:
    return call(verb, str(TASK), *QUICK, "--run.folder", str(folder), *more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("cli") / "run"
    return folder, quick("run", folder, "--budget.macs", "0.5")


def test_run_prints_the_table_to_stdout_and_the_rest_to_stderr(
    finished: tuple[Path, Result],
) -> None:
    folder, result = finished
    assert result.exit_code == 0, result.output
    assert re.search(r"Baseline +Compressed +Delta", result.stdout)
    for row in ("accuracy (test)", "MACs", "Parameters", "Latency"):
        assert row in result.stdout
    assert "tracing tiny" in result.stderr
    assert "finetuning took 1 epoch in all" in result.stderr
    assert str(folder / "report.html") in result.stderr
    assert "tracing" not in result.stdout
    assert "tracing tiny" in (folder / "run.log").read_text()


def test_run_again_reuses(finished: tuple[Path, Result]) -> None:
    folder, result = finished
    again = quick("run", folder, "--budget.macs", "0.5")
    assert again.stdout == result.stdout
    assert "nothing it depends on changed" in again.stderr


def test_stat_lists_layers_groups_and_reasons(finished: tuple[Path, Result]) -> None:
    result = quick("stat", finished[0])
    assert result.exit_code == 0, result.output
    for text in ("conv1", "share kept", "reaches the output", "next: prunella analyze"):
        assert text in result.output


@pytest.mark.parametrize("named", [["--run.folder"], []], ids=["by an option", "as it is"])
def test_report_prints_its_path(named: list[str], finished: tuple[Path, Result]) -> None:
    result = call("report", *named, str(finished[0]))
    assert result.stdout.strip() == str(finished[0] / "report.html")


def test_of_several_processes_the_first_does_what_one_can_do(
    finished: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    result = call("report", str(finished[0]))
    assert (result.exit_code, result.output) == (0, "")
    result = call("init", str(tmp_path / "my.toml"))
    assert (result.exit_code, result.output) == (0, "")
    assert not (tmp_path / "my.toml").exists()
    result = call("prune", str(tmp_path / "missing.onnx"), "--macs", "0.5")
    assert (result.exit_code, result.output) == (0, "")


def test_after_an_interruption_processes_are_started_as_they_were(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    speaking.interrupted("prunella run digits")
    assert "hint: go on with: prunella run digits\n" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    speaking.interrupted("prunella run digits")
    assert "with the command that started these processes" in capsys.readouterr().err


def test_report_names_the_folder_it_was_given(tmp_path: Path) -> None:
    result = call("report", str(tmp_path))
    assert result.exit_code == 2
    assert f"no run to report on in `{tmp_path}`: nothing is measured there yet" in result.stderr


def test_a_folder_that_is_misspelt_is_not_another_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("report", "prunela-run")
    assert result.exit_code == 2, result.output
    assert "no run to report on in `prunela-run`: it does not exist" in result.stderr


def test_report_makes_no_folder(tmp_path: Path) -> None:
    typed = tmp_path / "typo"
    result = call("report", "--run.folder", str(typed))
    assert result.exit_code == 2, result.output
    assert f"there is no run to report on in `{typed}`: it does not exist" in result.stderr
    assert "hint: Name the work folder of a run with `--run.folder`" in result.stderr
    assert not typed.exists()


def test_each_verb_says_the_next_command(tmp_path: Path) -> None:
    following = {
        "ana": "prune",
        "prune": "finetune",
        "finetune": "transform",
        "transform": "report",
    }
    for verb, next_ in following.items():
        result = quick(verb, tmp_path, "--budget.macs", "0.6")
        assert result.exit_code == 0, result.output
        said = re.search(r"next: (prunella .*)", result.stderr)
        assert said is not None, result.stderr
        assert said.group(1).startswith(f"prunella {next_} ")
        assert str(TASK) in said.group(1)
        assert "Baseline" in result.stdout


def test_a_settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("init", "my.toml").exit_code == 0
    again = call("init", "my.toml")
    assert again.exit_code == 2
    assert "exists already" in again.stderr
    file = tmp_path / "my.toml"
    text = file.read_text().replace('spec = "digits"', f'spec = "{TASK}"')
    file.write_text(text.replace('# folder = "prunella-run"', 'folder = "out"'))
    result = call("stat", "my.toml", "--prune.exclude", "conv1")
    assert result.exit_code == 0, result.output
    assert "excluded by 'conv1'" in result.stdout


@pytest.mark.parametrize("name", ["mine.py", "settings"])
def test_settings_are_known_by_their_ending(name: str, tmp_path: Path) -> None:
    result = call("init", str(tmp_path / name))
    assert result.exit_code == 2
    assert f"`{tmp_path / name}` is no name for settings" in result.stderr
    assert f"prunella init {(tmp_path / name).with_suffix('.toml')}`" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_settings_file_in_another_folder_finds_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(TASK.read_text())
    (tmp_path / "sub").mkdir()
    assert call("init", "sub/my.toml", "--task", "mine.py").exit_code == 0
    assert call("stat", "sub/my.toml").exit_code == 0
    assert not (tmp_path / "sub/prunella-run").exists()


@pytest.mark.parametrize("verb", ["stat", "analyze", "report"])
@pytest.mark.parametrize(
    ("folder", "why"),
    [("file", "a file is there"), ("file/x", "Not a directory"), ("a" * 300, "name too long")],
)
def test_a_work_folder_that_cannot_be_one(
    verb: str, folder: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    task = [] if verb == "report" else [str(TASK)]
    result = call(verb, *task, "--run.folder", folder)
    assert result.exit_code == 2
    assert f"error: `{folder}` cannot be the work folder: " in result.stderr
    assert why in result.stderr
    assert "Name another with `--run.folder NAME`" in result.stderr


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_help_teaches(verb: object) -> None:
    name = verb.name  # type: ignore[attr-defined]
    result = call(name, "--help")
    assert result.exit_code == 0
    assert "Example: prunella" in result.stdout
    assert name == "report" or "Next:" in result.stdout
    for section in verb.sections:  # type: ignore[attr-defined]
        assert f"--{section}." in result.stdout


def test_every_setting_is_an_option_of_every_verb() -> None:
    from typer.main import get_command

    command = get_command(app)
    options = {
        name: {opt for parameter in sub.params for opt in parameter.opts}
        for name, sub in command.commands.items()  # type: ignore[attr-defined]
        if name != "init"
    }
    assert set(options) == {verb.name for verb in VERBS} | {"ana", "export"}
    for found in options.values():
        for key, _, _ in keys():
            assert f"--{key}" in found or key == "task.options"


@pytest.mark.parametrize(
    ("arguments", "what", "hint"),
    [
        (["run", "--budget.macs", "0.5"], "no task is given", "prunella run digits"),
        (["run", str(TASK)], "no budget is set", "--budget.macs 0.5"),
        (["run", str(TASK), "--budget.mac", "0.5"], "no setting `budget.mac`", "`budget.macs`"),
        (["run", str(TASK), "--budget.macs", "2.5"], "`budget`: macs is a share", ""),
        (["run", str(TASK), "--budget.macs", "0.001"], "no plan leaves at most", "Raise the"),
        (["run", "cifar11", "--budget.macs", "0.5"], "there is no task `cifar11`", "`cifar10`"),
        (["run", "none.toml"], "there is no file `none.toml`", "prunella init"),
        (["analyze", str(TASK), "--analyze.share", "0.2"], "less than half", "at least 0.5"),
        (
            ["analyze", str(TASK), "--prune.exclude", "conv9"],
            "'conv9' matches no",
            "Did you mean 'conv",
        ),
        (["analyze", str(TASK), "--prune.criterion", "magic"], "no criterion called 'magic'", ""),
        (["analyze", str(TASK), "--task.options.colour", "3"], "options", "It accepts: seed"),
        (
            ["run", str(TASK), "--task.options", "3"],
            "`task.options`: these are the task's own options, each by its name; got 3",
            "Write `--task.options.NAME VALUE`",
        ),
        (["stat", str(TASK), "--task.options", "x=3"], "by its name; got 'x=3'", "Write `--task"),
        (
            ["analyze", str(TASK), "--task.options.seed", "x"],
            "cannot open split `train`: TypeError",
            "the options that it was given",
        ),
        (["run", "none.py", "--budget.macs", "1"], "no task file `none.py`", "Correct its path"),
        (["init", "."], "`.` is no name for settings", "Write `prunella init prunella.toml`"),
        (["init", "a/b.toml"], "cannot write `a/b.toml`: No such file", "see that `a` is a folder"),
        (["export", str(TASK), "--batch", "0"], "got batch=0", "leave it out for one"),
        (["export", str(TASK), "--max-drop", "nan"], "got max_drop=nan", "int8 may lose, e.g."),
        (["finetune", str(TASK)], "nothing is pruned yet", "prunella prune"),
        (["report"], "no run to report on", "prunella run"),
        (["stat", str(TASK), "--run.device", "nope"], "torch sees no device `nope`", "It sees cpu"),
        (["analyze", str(TASK), "--run.device", "meta"], "sees no device `meta`", "It sees cpu"),
        (["analyze", str(TASK), "--run.device", "cuda:99"], "no device `cuda:99`", "It sees cpu"),
        (["run", str(TASK), "--budget.macs"], "`--budget.macs` needs a value", "that may remain"),
        (
            ["run", str(TASK), "--run.folder", "--quiet"],
            "`--run.folder` needs a value, e.g. `--run.folder prunella-run`",
            "The work folder",
        ),
        (["run", str(TASK), "--fodler", "x"], "no setting `fodler`", "`run.folder`"),
        (["run", "--fodler", "x", str(TASK)], "no setting `fodler`", "`run.folder`"),
        (["export", "diggits"], "there is no task `diggits`", "Did you mean `digits`?"),
        (["run", "digits", "cifar10"], "do not know what to do with `cifar10`", "--section.key"),
        (
            ["digits", "--budget.params", "40%"],
            "a verb is missing before `digits`",
            "e.g. `prunella run digits --budget.params 40%`",
        ),
        (["--quiet", "d.py"], "before `d.py`", "`prunella run --quiet d.py --budget.macs 0.5`"),
        (["my.toml"], "a verb is missing before `my.toml`", "e.g. `prunella run my.toml`"),
        (["m.onnx", "--macs", "50%"], "before `m.onnx`", "`prunella prune m.onnx --macs 50%`"),
        (["--budget.macs", "0.5"], "no verb is given", "`prunella run digits --budget.macs 0.5`"),
        (["anlyze", "digits"], "no verb `anlyze`", "Did you mean `prunella analyze digits`?"),
        (["sing"], "there is no verb `sing`", "The verbs are analyze, suggest, prune, "),
    ],
    ids=lambda value: " ".join(map(Path, value)) if isinstance(value, tuple) else None,
)
def test_errors_say_what_and_what_to_do(
    arguments: Sequence[str], what: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("error: "))
    block = "\n".join(lines[start:])
    assert what in block
    assert "\nhint: " in block
    assert hint in block
    assert "Traceback" not in result.output
    assert result.stdout == ""


@pytest.mark.parametrize(
    "words",
    [
        ["stat", "--run.folder", "x", "TASK", "--prune.exclude", "conv1"],
        ["stat", "--task.options.seed", "1", "--run.folder=x", "TASK", "--prune.exclude=conv1"],
        ["--run.folder", "x", "stat", "TASK", "--prune.exclude", "conv1"],
        ["TASK", "--run.folder", "x", "stat", "--prune.exclude", "conv1"],
        ["--run.folder", "x", "--prune.exclude", "conv1", "--quiet", "stat", "TASK"],
        ["stat", "--finetune.masked", "TASK", "--run.folder", "x", "--prune.exclude", "conv1"],
        ["stat", "TASK", "--run.folder", "x", "--prune.exclude", "conv1", "--finetune.masked"],
    ],
    ids=" ".join,
)
def test_words_may_stand_in_any_order(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*(word.replace("TASK", str(TASK)) for word in words))
    assert result.exit_code == 0, result.output
    assert "excluded by 'conv1'" in result.stdout
    assert "--run.folder" in result.stderr
    assert list(tmp_path.iterdir()) == []
    assert ("--finetune.masked true" in result.stderr) == ("--finetune.masked" in words)


def test_what_is_said_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", plain)
    monkeypatch.setattr(sys, "stderr", None)
    speaking.never_mute()
    speaking.console().print("\N{MINUS SIGN}1")
    speaking.say("\N{MINUS SIGN}1")
    plain.seek(0)
    assert plain.read() == "?1\n"
    sys.stderr.close()


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Screen, io.StringIO])
def test_no_figure_is_cut_off(monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO]) -> None:
    monkeypatch.setenv("COLUMNS", "24")
    shown = stream()
    monkeypatch.setattr(sys, "stdout", shown)
    names = ["group", "channels", *(f"{tenth}0% gone" for tenth in range(1, 10))]
    layer = "model.encoder.layers.11.attention.output.dense"
    table = tables._table(*names)
    table.add_row(layer, "1,024", *(f"-0.{tenth}234567" for tenth in range(1, 10)))
    speaking.show(table)
    (row,) = (line for line in shown.getvalue().splitlines() if "1,024" in line)
    assert row.split() == [layer, "1,024", *(f"-0.{tenth}234567" for tenth in range(1, 10))]


def test_commands_are_copied_as_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "24")
    shown = Screen()
    monkeypatch.setattr(sys, "stderr", shown)
    command = "prunella run a_long_name_of_a_task.py --run.folder 'a folder' --budget.macs 0.5"
    speaking.say(f"next: {command}")
    assert f"next: {command}\n" in shown.getvalue()


def test_version() -> None:
    assert call("--version").stdout == f"prunella {version('prunella')}\n"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["prune"], "no budget is set"),
        (["prune", "--dry-run"], "no budget is set"),
        (["analyze", "--prune.criterion", "magic"], "no criterion called 'magic'"),
    ],
)
def test_what_was_typed_is_looked_at_before_the_work(
    arguments: list[str], what: str, tmp_path: Path
) -> None:
    result = quick(arguments[0], tmp_path, *arguments[1:])
    assert result.exit_code == 2
    assert what in result.stderr
    assert "tracing" not in result.stderr
    assert not (tmp_path / "baseline.json").exists()


@pytest.mark.parametrize(
    ("option", "what"),
    [("--run.threads=0", "`run.threads`: input should be"), ("--run.seed=-1", "`run.seed`: input")],
)
def test_an_error_without_a_remedy_refers_to_the_help_of_the_verb(option: str, what: str) -> None:
    result = call("export", str(TASK), option)
    assert what in result.stderr
    assert "hint: see `prunella export --help`" in result.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no budget is set"):
        quick("run", tmp_path, "--debug")


def test_a_nan_metric_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(
        TASK.read_text()
        .replace("metric=accuracy()", 'metric=Metric("score", True, lambda pairs: float("nan"))')
        .replace("import Split", "import Metric, Split")
    )
    result = call("analyze", str(broken), "--run.folder", str(tmp_path / "run"))
    assert result.exit_code == 2
    assert "`score` of task `tiny` is nan on split `valid`" in result.stderr


def test_messages_come_apart_at_the_remedy() -> None:
    assert split("a.json is bad: it is 0.5. Delete it") == ("a.json is bad: it is 0.5", "Delete it")
    assert split("nothing to do") == ("nothing to do", "")


def test_a_disk_that_fills_up_loses_nothing(tmp_path: Path, finished: tuple[Path, Result]) -> None:
    # A limit on the size of files stands for the disk: small records still fit, models do not.
    code = (
        "import resource, sys; from prunella.cli import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); "
        "sys.argv[0] = 'prunella'; main()"
    )
    arguments = ["run", str(TASK), *QUICK, "--budget.macs", "0.5", "--run.folder", str(tmp_path)]
    full = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert full.returncode == 2, full.stderr
    assert "Traceback" not in full.stderr
    assert re.search(r"error: .*(cannot|could not)", full.stderr), full.stderr
    assert (tmp_path / "sensitivity.json").exists()
    after = call(*arguments)
    assert after.exit_code == 0, after.output
    assert "sensitivity.json`: nothing it depends on changed" in after.stderr
    whole = finished[0] / "final/plan.json"
    assert (tmp_path / "final/plan.json").read_bytes() == whole.read_bytes()


def test_a_floor_that_is_missed_is_told_by_the_exit_code(tmp_path: Path) -> None:
    strict = ["--finetune.max_drop", "0", "--finetune.lr", "1e-6", "--prune.retries", "0"]
    result = quick("run", tmp_path, "--budget.macs", "0.1", *strict)
    assert result.exit_code == 1, result.output
    assert "no round met the floor" in result.stderr
    assert "Baseline" in result.stdout


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    arguments = ["run", str(TASK), "--budget.macs", "0.5", "--task.options.pause", "0.05"]
    process = subprocess.Popen(
        [sys.executable, "-m", "prunella", *arguments, "--run.folder", str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background of a shell inherit an ignored Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "baseline.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 130, err
    assert "interrupted: all that was finished is kept" in err
    assert f"hint: go on with: prunella run {TASK} --task" in err
    assert "--budget.macs 0.5" in err
    assert "Traceback" not in err
    assert out == ""


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, prunella.cli; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)


def test_suggest_lists_budgets_and_marks_the_knee(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    guess = quick("suggest", folder)
    assert guess.exit_code == 0, guess.output
    assert re.search(r"budget +MACs left +params left +accuracy, predicted +delta", guess.stdout)
    assert len(re.findall(r"^ macs \d+\.0% ", guess.stdout, re.MULTILINE)) == 7
    assert guess.stdout.count("knee") == 1
    assert "best choice leaves" not in guess.stderr, "seven plans are tried, none is chosen"
    assert "predicted damage" not in guess.stderr
    assert "estimated on 64 samples" in guess.stderr
    knee = re.search(r"^ macs (\d+)\.0% .*knee", guess.stdout, re.MULTILINE)
    assert knee is not None
    assert f"--budget.macs 0.{knee[1][0]}" in guess.stderr
    assert not list(folder.glob("round*"))
    assert not (folder / "baseline.json").exists(), "nothing but the estimate is kept"
    measured = quick("analyze", folder)
    assert measured.exit_code == 0
    assert re.search(r"^ group +channels +50% gone", measured.stdout, re.MULTILINE)
    assert re.search(r"^ conv1 +\d+ +(0|.0\.\d+) *$", measured.stdout, re.MULTILINE)
    known = quick("suggest", folder, "--budget.params", "0.55")
    assert "from the sensitivity (measured)" in known.stderr
    assert re.search(r"^ params 5[45]\.\d% .*your budget", known.stdout, re.MULTILINE)


def test_suggest_says_where_budgets_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunella.pipeline.suggesting.STEPS", (0.5, 0.0001))
    result = quick("suggest", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert re.search(r"^ macs 50\.0% ", result.stdout, re.MULTILINE)
    assert "the smallest possible leaves" in result.stderr
    asked = quick("suggest", tmp_path / "run", "--budget.macs", "0.0001")
    assert asked.exit_code == 0, asked.output
    assert re.search(r"^next: prunella prune .*--budget\.macs 0\.5$", asked.stderr, re.MULTILINE)
    assert asked.stderr.count("--budget.macs") == 1


def test_a_dry_run_of_prune_makes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = quick("prune", folder, "--budget.macs", "0.6", "--dry-run")
    assert result.exit_code == 0, result.output
    assert re.search(r"^ macs 60\.0% .*your budget", result.stdout, re.MULTILINE)
    shown = re.findall(r"^ (\S+) +(\d+) +(\d+) +[\d.]+%", result.stdout, re.MULTILINE)
    assert "nothing was pruned; to do it: prunella prune" in result.stderr
    assert sorted(path.name for path in folder.iterdir() if path.suffix == ".json") == [
        "estimate.json"
    ]
    refused = quick("prune", folder, "--budget.macs", "0.0001", "--dry-run")
    assert refused.exit_code == 2
    assert "no plan leaves at most" in refused.stderr
    assert shown
    assert all(int(kept) <= int(channels) for _, channels, kept in shown)
    assert call("analyze", str(TASK), "--dry-run").exit_code == 2
