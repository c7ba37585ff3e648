"""Settings: one file, overrides, and errors that name the nearest key."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from prunella.config import Config, joined, keys, load, parse_overrides, template
from prunella.errors import ConfigError


def test_defaults_suit_a_user_who_sets_task_and_budget() -> None:
    config = load(None, {"task.spec": "digits", "budget.macs": "0.5"})
    assert config.task.spec == "digits"
    assert config.to_budget().macs == 0.5
    assert config.analyze.share == 1.0
    assert config.finetune.masked is False


def test_options_are_stronger_than_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[task]\nspec = "digits"\n[budget]\nmacs = 0.5\n[finetune]\nepochs = 7\n')
    config = load(file, {"budget.macs": "0.25", "task.options.width": "8"})
    assert config.budget.macs == 0.25
    assert config.finetune.epochs == 7
    assert config.task.options == {"width": 8}


def test_paths_in_the_file_are_relative_to_it(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[task]\nspec = "mine.py"\n[run]\nfolder = "out"\n')
    config = load(file)
    assert config.task.spec == str(tmp_path / "mine.py")
    assert config.folder == tmp_path / "out"
    assert load(file, {"run.folder": "here"}).folder == Path("here")


def test_a_leading_tilde_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert load(None, {"run.folder": "~/out"}).folder == Path("/home/ada/out")
    assert load(None, {"task.spec": "~/mine.py"}).task.spec == "/home/ada/mine.py"
    file = tmp_path / "a.toml"
    file.write_text('[task]\nspec = "~/mine.py"\n[run]\nfolder = "~"\n')
    config = load(file)
    assert (config.task.spec, config.folder) == ("/home/ada/mine.py", Path("/home/ada"))


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("", "`run.folder`: string should have at least 1 character"),
        ("~nobody-of-this-name/x", "`~nobody-of-this-name/x` is in nobody's home"),
        ("a\0b", "`run.folder`: there is no such place"),
    ],
)
def test_a_folder_that_cannot_be(folder: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(f"[run]\nfolder = {json.dumps(folder)}\n")
    for given in ((None, {"run.folder": folder}), (file, {})):
        with pytest.raises(ConfigError, match=re.escape(message)):
            load(*given)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("finetune.lr", "0.01", (0.01,)),
        ("finetune.lr", "0.01,0.1", (0.01, 0.1)),
        ("finetune.lr", "[0.01, 0.1]", (0.01, 0.1)),
        ("finetune.decays", "cosine,step", ("cosine", "step")),
        ("finetune.masked", "true", True),
        ("prune.exclude", "layer3.*", ("layer3.*",)),
        ("prune.exclude", "re:a{1,2}", ("re:a{1,2}",)),
        ("prune.exclude", '["a", "b"]', ("a", "b")),
        ("budget.macs", "50%", "50%"),
        ("budget.params", "20000000", 20_000_000),
        ("budget.latency", "0.5", 0.5),
        ("budget.latency", "8ms", "8ms"),
        ("budget.latency", "50%", "50%"),
        ("run.folder", "7", "7"),
        ("run.folder", "true", "true"),
        ("run.folder", "2024-01-01", "2024-01-01"),
        ("task.spec", "1e5", "1e5"),
        ("prune.criterion", "1", "1"),
        ("prune.exclude", "7", ("7",)),
        ("prune.exclude", "true", ("true",)),
        ("prune.exclude", "[12]", ("[12]",)),
        ("finetune.decays", '["cosine", "step"]', ("cosine", "step")),
        ("task.options", "{width = 8}", {"width": 8}),
    ],
)
def test_values_as_typed_on_a_command_line(key: str, text: str, value: object) -> None:
    section, name = key.split(".")
    assert getattr(getattr(load(None, {key: text}), section), name) == value


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("budget.mac", "0.5", "there is no setting `budget.mac`. Did you mean `budget.macs`?"),
        ("buget.macs", "0.5", "there is no setting `buget`. Did you mean `budget`?"),
        ("budget.macs", "-1", "`budget`: macs is a share of the dense model"),
        ("budget.latency", "8", "a time with its unit ('8ms', '0.2 s'), got 8"),
        ("budget.latency", "1.5", "latency is a share of the dense model's in (0, 1]"),
        ("budget.runtime", "torch", "there is none: give `latency` too"),
        ("budget.runtime", "onnxruntim", "no runtime `onnxruntim`; did you mean `onnxruntime`?"),
        ("budget.runtime", "torch:cores=2", "`cores=2` in the runtime `torch:cores=2`"),
        ("finetune.epochs", "0", "`finetune.epochs`: input should be greater than or equal to 1"),
        ("finetune.epochs", "many", "got 'many'"),
        ("finetune.lr", "[0.1, 0]", "learning rates are greater than 0"),
        ("finetune.decays", "cos", "'cosine', 'linear', 'step' or 'constant', got 'cos'"),
        ("analyze.share", "0.3", "less than half of the data"),
        ("analyze.ratios", "0.5,0.2", "ascending, none twice"),
        ("analyze.split", "test", "'valid' or 'train'"),
        ("run.seed", "-1", "`run.seed`"),
        ("finetune.lr", "1e300", "learning rates are greater than 0, and at most 1e+06"),
        ("finetune.weight_decay", "1e300", "`finetune.weight_decay`: input should be less than"),
        ("analyze.memory_gb", "1e300", "`analyze.memory_gb`: input should be less than"),
        ("run.seed", str(2**63), "`run.seed`: input should be less than 9223372036854775808"),
        ("finetune.floor", "nan", "`finetune.floor`: input should be a finite number, got nan"),
        ("finetune.max_drop", "inf", "`finetune.max_drop`: input should be a finite number"),
        ("finetune.lr", "0.1,inf", "`finetune.lr`: input should be a finite number, got 'inf'"),
        ("run.latency_seconds", "inf", "`run.latency_seconds`: input should be a finite number"),
        ("budget.macs", "nan", "in the options: `budget.macs`: input should be a finite number"),
        ("finetune.epochs", "true", "`finetune.epochs`: this is no switch, it takes a number"),
        ("finetune.lr", "[true]", "`finetune.lr`: this is no switch, it takes a number"),
        ("budget.macs", "true", "`budget.macs`: this is no switch, it takes a number"),
        ("finetune.epochs", "9" * 5000, "`finetune.epochs`: unable to parse input string"),
        ("task.options.width", "nan", "`width` is kept in the run's record, as JSON"),
    ],
)
def test_a_bad_value_says_where_and_what(key: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(None, {key: text})


def test_a_bad_value_is_told_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, {"budget.macs": "inf"})
    assert str(caught.value).count("budget.macs") == 1


def test_a_date_is_an_option_of_a_task_as_typed(tmp_path: Path) -> None:
    assert load(None, {"task.options.since": "2024-01-01"}).task.options == {"since": "2024-01-01"}
    file = tmp_path / "a.toml"
    file.write_text("[task.options]\nsince = 2024-01-01\n")
    with pytest.raises(ConfigError, match=r"which has no datetime\.date.*give it as text"):
        load(file)


def test_a_small_share_can_be_insisted_on() -> None:
    config = load(None, {"analyze.share": "0.1", "analyze.allow_small_share": "true"})
    assert config.analyze.share == 0.1


def test_floor_and_max_drop_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="give floor or max_drop, not both"):
        load(None, {"finetune.floor": "0.9", "finetune.max_drop": "0.01"})


def test_no_budget_says_how_to_give_one() -> None:
    with pytest.raises(ConfigError, match=r"`--budget\.macs 0\.5`"):
        Config().to_budget()


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*`prunella init nowhere\.toml`"):
        load(tmp_path / "nowhere.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[task\n")
    with pytest.raises(ConfigError, match=r"broken\.toml` is not TOML: .*line 1"):
        load(broken)
    broken.write_text(f"[finetune]\nepochs = {'9' * 5000}\n")
    with pytest.raises(ConfigError, match=r"broken\.toml` is not TOML: Exceeds the limit"):
        load(broken)
    broken.write_text(f"a = {'[' * 5000}")
    with pytest.raises(ConfigError, match=r"broken\.toml` is not TOML: "):
        load(broken)
    broken.write_text("task = 3\n")
    with pytest.raises(ConfigError, match="`task`"):
        load(broken)


def test_a_file_may_begin_with_a_mark_of_its_encoding(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[task]\nspec = "digits"\n', encoding="utf-8-sig")
    assert load(file).task.spec == "digits"


def test_overrides_are_read_in_every_form() -> None:
    given = ["--budget.macs", "0.5", "--finetune.max-drop=0.01", "--task.options.depth", "20"]
    assert parse_overrides(given) == {
        "budget.macs": "0.5",
        "finetune.max_drop": "0.01",
        "task.options.depth": "20",
    }
    assert parse_overrides(["--finetune.masked", "--run.seed", "1"])["finetune.masked"] == "true"
    assert parse_overrides(["--finetune.carry-state"]) == {"finetune.carry_state": "true"}
    assert parse_overrides(["--prune.repair", "off"]) == {"prune.repair": "off"}
    assert parse_overrides(["--run.seed", "1", "--run.seed=2"]) == {"run.seed": "2"}


def test_a_switch_leaves_the_word_after_it_alone() -> None:
    words = ["--finetune.masked", "digits", "--prune.repair", "no", "--quiet", "-o", "a"]
    assert joined(words) == [
        *("--finetune.masked=true", "digits", "--prune.repair=no", "--quiet", "-o", "a")
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--epochs", "3"], "no setting `epochs`. Did you mean `finetune.epochs`?"),
        (["--budget.maks", "3"], "Did you mean `budget.macs`?"),
        (["--qqqq", "3"], "The sections are task, budget"),
        (["--budget.macs"], "`--budget.macs` needs a value. Multiply-accumulates that may remain"),
        (
            ["--run.folder", "--run.seed", "1"],
            "`--run.folder` needs a value, e.g. `--run.folder pr",
        ),
        (["--task.options.width"], "`--task.options.width` needs a value"),
        (["0.5"], "do not know what to do with `0.5`"),
    ],
)
def test_overrides_that_are_not(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_overrides(given)


def test_the_template_is_a_valid_file_that_names_every_key(tmp_path: Path) -> None:
    text = template()
    file = tmp_path / "prunella.toml"
    file.write_text(text)
    config = load(file)
    assert config.task.spec == "digits"
    assert config.finetune.max_drop == 0.01
    for name, _, meaning in keys():
        assert f"{name.split('.')[1]} =" in text
        assert meaning, f"{name} has no description"
    uncommented = "\n".join(
        line.removeprefix("# ") if " = " in line and not line.endswith(".") else line
        for line in text.splitlines()
    )
    data = tomllib.loads(uncommented)
    data["run"]["folder"] = str(tmp_path / "x")
    assert Config.model_validate(data).finetune.epochs == Config().finetune.epochs
