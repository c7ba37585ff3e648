"""`prunella export`: from a run, a saved model or a plan, to files that other programs run."""

import re
from pathlib import Path
from typing import Any

import pytest
import sklearn.datasets  # noqa: F401  its first import sets environment variables
import torch
from click.testing import Result
from typer.testing import CliRunner

import prunella
from prunella import tasks
from prunella.cli import app
from prunella.errors import ExportError
from prunella.runtimes import prepare_onnx

TASK = Path(__file__).parents[1] / "tiny_task.py"
QUICK = [
    "--prune.rounds=1",
    "--analyze.ratios=0.5",
    "--finetune.epochs=1",
    "--finetune.trials=1",
    "--run.latency_seconds=0.05",
    "--run.device=cpu",
    "--run.threads=1",
]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    result = call("run", TASK, *QUICK, "--run.folder", folder, "--budget.macs", "0.5")
    assert result.exit_code == 0, result.output
    return folder


def final(folder: Path) -> torch.nn.Module:
    return prunella.load(folder / "final", tasks.load(str(TASK)).model()).eval()


def test_a_work_folder_is_enough(folder: Path) -> None:
    result = call("export", folder, "--int8", "--max-drop", "0.1")
    assert result.exit_code == 0, result.output
    path, small = folder / "export" / "model.onnx", folder / "export" / "model-int8.onnx"
    assert result.stdout.splitlines()[-1] == str(path)
    assert {file.name for file in path.parent.iterdir()} == {path.name, small.name}
    rows = {line.split("  ")[0].strip() for line in result.stdout.splitlines()}
    assert {"dense", "pruned", "pruned, int8"} <= rows
    assert re.search(r"MB +latency in onnxruntime +against dense +accuracy", result.stdout)
    for text in (
        "exporting tiny to",
        "on random inputs, batch 1 (tolerance 1e-04)",
        "on random inputs, batch 3",
        "on real inputs, batch 4",
        "the batch is of any size; the file takes images",
        "int8: ranges from 256 samples of the train split; at most 0.1 of the accuracy",
    ):
        assert text in result.stderr
    images = torch.randn(5, 1, 8, 8)
    for file, error in ((path, 1e-5), (small, 1.0)):
        with prepare_onnx(file, {"images": images.numpy()}, "onnxruntime") as ready:
            (found,) = ready.on([images.numpy()])
        torch.testing.assert_close(
            torch.from_numpy(found), final(folder)(images).detach(), atol=error, rtol=0
        )


@pytest.mark.parametrize(("to", "ending"), [("torch-export", ".pt2"), ("openvino", ".xml")])
def test_other_targets_and_a_place_of_ones_own(
    to: str, ending: str, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"mine{ending}"
    result = call(
        "export", TASK, *QUICK, "--run.folder", folder, "--to", to, "-o", path, "--batch", "2"
    )
    assert result.exit_code == 0, result.output
    assert path.exists()
    assert "on random inputs, batch 6" in result.stderr


def test_a_saved_model_and_a_plan(folder: Path, tmp_path: Path) -> None:
    prunella.save(final(folder), tmp_path)
    for source in (tmp_path, tmp_path / "plan.json"):
        lost = call("export", source)
        assert lost.exit_code == 2
        assert "does not say which model it was made of" in lost.stderr
        assert f"prunella export {source} --task.spec my_task.py" in lost.stderr
        result = call("export", source, "--task.spec", TASK, *QUICK, "--fixed", "--quiet")
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines()[-1] == str(tmp_path / "export" / "model.onnx")
        assert "the batch is of 1" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "what", "hint"),
    [
        (["--to", "onx"], "nothing called `onx` to export to", "Did you mean `onnx`?"),
        (["--to", "openvino", "--int8"], "not `openvino`", "Use `--to onnx`"),
        (["--batch", "0"], "`batch` must be at least 1, got batch=0", ""),
        (["-o", "/dev/null/net.onnx"], "`/dev/null/net.onnx` cannot be written", "another place"),
        (["-o", "net.pb"], "a file of `onnx` ends in .onnx", "`net.onnx`"),
        (["--int8", "--max-drop", "-1"], "must not be negative", ""),
        (["--run.fodler", "x"], "no setting `run.fodler`", "`run.folder`"),
    ],
)
def test_what_is_wrong_is_told(folder: Path, arguments: list[str], what: str, hint: str) -> None:
    result = call("export", TASK, *QUICK, "--run.folder", folder, *arguments)
    assert result.exit_code == 2, result.output
    error, found = result.stderr.split("error: ")[-1].split("hint: ")
    assert what in error
    assert hint in found


def test_int8_that_is_refused_leaves_a_float_file_that_is_compared(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ExportError("int8 is worse by 0.5. Grant more with `max_drop` (`--max-drop`)")

    monkeypatch.setattr("prunella.exporting.quantize", refuse)
    path = tmp_path / "net.onnx"
    result = call("export", folder, "--int8", "-o", path)
    assert result.exit_code == 2
    assert path.exists()
    assert re.search(r"^ pruned +\d", result.stdout, re.MULTILINE)
    assert "on real inputs, batch 4" in result.stderr
    assert "hint: Grant more with `max_drop` (`--max-drop`)" in result.stderr


def test_without_a_run_or_a_final_model(tmp_path: Path) -> None:
    result = call("export", tmp_path)
    assert result.exit_code == 2
    assert f"there is no run in `{tmp_path}`" in result.stderr
    result = call("export", TASK, "--run.folder", tmp_path / "none")
    assert result.exit_code == 2
    assert "there is no final model" in result.stderr
    assert f"prunella transform {TASK}" in result.stderr
    assert not (tmp_path / "none").exists()
    result = call("export")
    assert "no task is given" in result.stderr


@pytest.mark.slow
def test_int8_on_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = tasks.load("digits").model()
    result = prunella.prune(model, torch.randn(1, 1, 8, 8), macs=0.8)
    prunella.save(result.model, tmp_path / "saved")
    said = call(
        "export",
        tmp_path / "saved",
        "--task.spec",
        "digits",
        "--int8",
        "--max-drop",
        "0.02",
        *QUICK,
    )
    assert said.exit_code == 0, said.output
    rows = {
        found.group(1): found.group(2).split()
        for line in said.stdout.splitlines()
        if (found := re.match(r" ?(dense|pruned, int8|pruned) +(\S.*)$", line))
    }
    megabytes = [float(rows[name][0]) for name in ("dense", "pruned", "pruned, int8")]
    assert megabytes[0] > megabytes[1] > 2 * megabytes[2]
    float_, int8 = (float(rows[name][-1]) for name in ("pruned", "pruned, int8"))
    assert float_ > 0.5
    assert int8 >= float_ - 0.02
