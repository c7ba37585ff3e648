import errno
import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunella
from prunella.errors import ConfigError, ExportError, WorkspaceError
from prunella.exporting import TARGETS, Parity, export, quantize, timed
from prunella.exporting import exporting as stage
from prunella.exporting.parity import LIMIT, TOLERANCE, allowed, difference

ENDS = {"onnx": ".onnx", "torch-export": ".pt2", "openvino": ".xml"}
X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A residual convolutional network with two outputs."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.conv = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1)
        )
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width, 5)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        hidden = self.stem(image)
        hidden = self.drop((hidden + self.conv(hidden)).relu().mean((2, 3)))
        return {"logits": self.head(hidden), "hidden": hidden}


def images(count: int = 2, size: int = 6) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 8, 8, generator=random) for _ in range(count)]


@pytest.mark.parametrize("to", TARGETS)
def test_a_file_computes_what_the_model_does_on_any_batch(to, tmp_path):
    model = Net().train()
    found = export(model, X, tmp_path / f"net{ENDS[to]}", to=to, data=images())
    assert all(module.training for module in model.modules())
    assert [(p.inputs, p.batch) for p in found.parity] == [
        ("random", 1),
        ("random", 3),
        ("real", 4),
        ("real", 4),
    ]
    assert all(p.holds and p.error < 1e-5 for p in found.parity)
    assert found.batch is None
    assert found.why_fixed == ""
    assert found.form.names == ("image",)
    assert found.size == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert sorted(found.files) == sorted(tmp_path.iterdir())
    other = torch.randn(7, 3, 8, 8)
    answer, expected = found.module()(other), model.eval()(other)
    assert list(answer) == ["logits", "hidden"]
    for name, tensor in answer.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-5)


class Causal(nn.Module):
    """torch's own Transformer asks a mask if it is causal, and this one asks constants too."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.inner = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(5))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.arange(1.0, 3.0)
        if (scale == 0).any():
            raise ValueError("a scale is zero")
        made = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        encoded: Tensor = self.inner(x, mask=made if self.where == "made" else self.mask)
        return encoded * scale[0]


@pytest.mark.parametrize("to", ["onnx", "torch-export"])
@pytest.mark.parametrize("where", ["made", "buffer"])
def test_what_can_be_traced_can_be_exported(where, to, tmp_path):
    model, x = Causal(where).eval(), torch.randn(3, 5, 8)
    found = export(model, x, tmp_path / f"net{ENDS[to]}", to=to)
    torch.testing.assert_close(found.module()(x), model(x).detach(), atol=1e-5, rtol=1e-5)


def test_a_pruned_model_is_exported_from_the_package(tmp_path):
    model = Net(16).eval()
    result = prunella.prune(model, X, macs=0.5)
    found = prunella.export(result.model, X, tmp_path / "net.onnx")
    dense = prunella.export(model, X, tmp_path / "dense.onnx")
    assert found.size < dense.size
    torch.testing.assert_close(
        found.module()(X)["logits"], result.model(X)["logits"].detach(), atol=1e-6, rtol=0
    )


class Literal(nn.Module):
    """Its code says the batch: one of a single sample."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.view(4, 8)).sum(0, keepdim=True)


@pytest.mark.parametrize("to", TARGETS)
def test_a_batch_that_the_code_says_is_kept_with_a_warning(to, tmp_path, caplog):
    model, x = Literal(), torch.randn(1, 32)
    path = tmp_path / f"net{ENDS[to]}"
    with caplog.at_level(logging.WARNING, "prunella"):
        found = export(model, x, path, to=to)
    assert found.batch == 1
    assert "cannot capture the model with a dynamic batch" in found.why_fixed
    assert f"`{path}` is bound to a batch of 1" in caplog.text
    assert [(p.inputs, p.batch) for p in found.parity] == [("random", 1)]
    with pytest.raises(ExportError, match="with a dynamic batch"):
        export(model, x, path, to=to, dynamic=True)
    assert path.exists()


def test_a_fixed_file_is_run_as_often_as_it_takes(tmp_path):
    model = Net().eval()
    found = export(model, images(1, 4)[0], tmp_path / "net.onnx", dynamic=False)
    assert found.batch == 4
    for size in (4, 1, 10):
        other = torch.randn(size, 3, 8, 8)
        answer = found.module()(other)
        torch.testing.assert_close(answer["logits"], model(other)["logits"], atol=1e-5, rtol=0)


class Moody(nn.Module):
    """Adds another number at every call, of which a file can hold but one."""

    def forward(self, x: Tensor) -> Tensor:
        return x + random.random()


@pytest.mark.parametrize("to", TARGETS)
def test_a_file_that_computes_something_else_is_refused(to, tmp_path):
    path = tmp_path / f"net{ENDS[to]}"
    path.write_text("the older file")
    with pytest.raises(
        ExportError,
        match=r"something else than the model: output `output` differs by [\d.]+ on random inputs, "
        r"batch 1 \(tolerance 1e-0[24]\)",
    ):
        export(Moody(), torch.zeros(1, 6), path, to=to)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "the older file"


def test_a_small_but_wrong_difference_is_refused(tmp_path, monkeypatch):
    honest = stage._answers

    def wrong(*given):  # as if the runtime had another GELU, say
        logits, hidden = honest(*given)
        return [logits * (1 + 5e-4), hidden]

    monkeypatch.setattr(stage, "_answers", wrong)
    with pytest.raises(ExportError, match=r"output `logits` differs by 0\.0005 on random inputs"):
        export(Net(), X, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_real_inputs_are_compared_too(tmp_path, monkeypatch):
    honest = stage._answers

    def wrong(model, form, given):
        answers = honest(model, form, given)
        return [a + 1 for a in answers] if (given[0] == 7).all() else answers

    monkeypatch.setattr(stage, "_answers", wrong)
    export(Net(), X, tmp_path / "net.onnx")
    with pytest.raises(ExportError, match="on real inputs, batch 1"):
        export(Net(), X, tmp_path / "other.onnx", data=[torch.full((6, 3, 8, 8), 7.0)])


def test_too_few_real_inputs_for_a_fixed_batch_are_filled_up(tmp_path):
    found = export(Net(), images(1, 4)[0], tmp_path / "net.onnx", data=images(1, 3), dynamic=False)
    assert [(p.inputs, p.batch) for p in found.parity] == [("random", 4), ("real", 4)]


def test_outputs_that_are_zero_say_little(tmp_path, caplog):
    model = nn.Linear(4, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    with caplog.at_level(logging.WARNING, "prunella"):
        export(model, torch.zeros(1, 4), tmp_path / "net.onnx")
    assert "every output of the model is zero on random inputs" in caplog.text


def test_a_model_that_gives_no_number_is_told(tmp_path):
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 0 * 0

    with pytest.raises(ExportError, match="gives no finite number on random inputs"):
        export(Nothing(), torch.zeros(1, 6), tmp_path / "net.onnx", dynamic=False)


class Cache:
    """What torch knows nothing of."""


@pytest.mark.parametrize("to", TARGETS)
def test_an_output_that_cannot_be_looked_into_is_left_out(to, tmp_path):
    class Caching(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, dict[str, object]]:
            return x * 2, {"cache": Cache(), "half": x / 2}

    found = export(Caching(), torch.zeros(1, 4), tmp_path / f"net{ENDS[to]}", to=to)
    assert found.outputs == ("output_0", "output_1_half")
    double, rest = found.module()(torch.ones(2, 4))
    assert (double == 2).all()
    assert rest["cache"] is None
    assert (rest["half"] == 0.5).all()


@pytest.mark.parametrize("to", TARGETS)
def test_gathered_arguments_have_a_dynamic_batch(to, tmp_path):
    class Gathering(nn.Module):
        def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
            return args[0] + args[1] * kwargs["scale"]

    x = torch.randn(2, 4)
    found = export(
        Gathering(),
        (x, x.clone()),
        tmp_path / f"net{ENDS[to]}",
        to=to,
        example_kwargs={"scale": x.clone()},
    )
    assert found.batch is None
    assert found.form.names == ("args_0", "args_1", "scale")
    y = torch.randn(5, 4)
    torch.testing.assert_close(found.module()(y, y, scale=y), y + y * y)


@pytest.mark.parametrize("to", TARGETS)
def test_a_rewritten_model_is_exported(to, tmp_path):
    model = Net(16).eval()
    pruned = prunella.prune(model, X, macs=0.5, form="graph").model
    found = export(pruned, X, tmp_path / f"net{ENDS[to]}", to=to)
    assert found.batch is None
    other = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(
        found.module()(other)["logits"], pruned(other)["logits"].detach(), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    ("to", "name", "text"),
    [
        ("onx", "net.onnx", "nothing called `onx` to export to; did you mean `onnx`?"),
        ("tflite", "net.tflite", "Choose of onnx, torch-export, openvino"),
        ("onnx", "net.pt2", "a file of `onnx` ends in .onnx, got"),
        ("openvino", "folder.xml", "is a folder. Name a file"),
    ],
)
def test_a_wrong_target_or_name_is_told(to, name, text, tmp_path):
    (tmp_path / "folder.xml").mkdir()
    with pytest.raises(ConfigError) as caught:
        export(Net(), X, tmp_path / name, to=to)
    assert text in str(caught.value)


def test_a_place_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match=r"cannot be written.*choose another place"):
        export(Net(), X, tmp_path / "file" / "net.onnx")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(WorkspaceError, match=r"No space left on device.*Free some space"):
        export(Net(), X, tmp_path / "net.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_models_that_cannot_be_exported_are_told(tmp_path):
    with pytest.raises(ConfigError, match=r"`stem.0.weight` is on the meta device"):
        export(Net().to("meta"), X.to("meta"), tmp_path / "net.onnx")
    with pytest.raises(ConfigError, match=r"`stem.0.weight` is in bfloat16.*model.float\(\)"):
        export(Net().bfloat16(), X.bfloat16(), tmp_path / "net.onnx")
    with pytest.raises(ConfigError, match="no batch of the data has the shapes"):
        export(Net(), X, tmp_path / "net.onnx", data=[torch.zeros(2, 3, 9, 9)])


def test_tensors_above_the_limit_of_a_file_lie_beside_it(tmp_path, monkeypatch):
    # As above 2 GB, without 2 GB.
    from torch.onnx import ONNXProgram

    honest = ONNXProgram.save
    monkeypatch.setattr(
        ONNXProgram, "save", lambda self, path: honest(self, path, external_data=True)
    )
    found = export(Net(64), X, tmp_path / "net.onnx")
    assert {file.name for file in found.files} == {"net.onnx", "net.onnx.data"}
    assert found.path.stat().st_size < found.size / 2
    monkeypatch.undo()
    assert export(Net(64), X, tmp_path / "net.onnx").files == (tmp_path / "net.onnx",)
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_differences():
    one = np.array([1.0, -4.0, np.nan, np.inf], np.float32)
    other = one.copy()
    assert difference(one, other) == 0
    other[0] += 0.4
    assert difference(one, other) == pytest.approx(0.1)
    assert difference(one, np.array([1.0, -4.0, np.inf, np.nan], np.float32)) == float("inf")
    assert difference(one, one[:3]) == float("inf")
    whole = np.arange(10)
    assert difference(whole, np.where(whole == 3, 0, whole)) == pytest.approx(0.1)
    assert difference(np.zeros(3, np.float32), np.full(3, 1e-6, np.float32)) == pytest.approx(1e-6)


def test_the_tolerance_follows_the_rounding_of_the_model_within_bounds():
    exact = [np.array([1.0, 2.0])]
    assert allowed([np.array([1.0, 2.0])], exact) == TOLERANCE
    assert allowed([np.array([1.0, 2.0001])], exact) == pytest.approx(10 * 5e-5)
    assert allowed([np.array([1.0, 2.1])], exact) == LIMIT
    assert allowed(exact, None) == TOLERANCE
    assert not Parity("random", 1, "output", float("nan"), TOLERANCE).holds


def test_timing_in_one_runtime(tmp_path):
    threads = torch.get_num_threads()
    models = {
        "wide": export(Net(64), X, tmp_path / "wide.onnx"),
        "narrow": export(Net(8), X, tmp_path / "narrow.onnx"),
        "module": Net(8),
    }
    found = timed(models, X, runtime=f"onnxruntime:threads={threads + 1}", seconds=0.3)
    assert list(found.latency) == ["wide", "narrow", "module"]
    assert found.speedup("narrow").ratio > 1
    assert torch.get_num_threads() == threads
    assert found.runtime.threads == threads + 1


def test_int8_is_smaller_and_agrees(tmp_path):
    torch.manual_seed(0)
    model = Net(64).eval()
    found = export(model, X, tmp_path / "net.onnx")
    small = quantize(found, tmp_path / "net8.onnx", images(4, 16), max_drop=0.5)
    assert small.exported.size < found.size / 2
    assert small.samples == 64
    assert small.before == 1
    assert 0.5 <= small.after < 1
    other = torch.randn(5, 3, 8, 8)
    answer, expected = small.exported.module()(other)["hidden"], model(other)["hidden"]
    assert 0 < (answer - expected).abs().max() < 0.1 * expected.abs().max()
    assert {file.name for file in tmp_path.iterdir()} == {"net.onnx", "net8.onnx"}


def test_int8_that_loses_too_much_is_refused(tmp_path):
    found = export(Net(), X, tmp_path / "net.onnx")
    judged = iter([0.9, 0.8, 0.2, 0.5])

    def judge(model: nn.Module) -> float:
        assert model(images(1)[0])["logits"].shape == (6, 5)
        return next(judged)

    with pytest.raises(ExportError, match=r"worse by 0\.1 \(0\.9 in float, 0\.8 in int8\).*0\.05"):
        quantize(found, tmp_path / "net8.onnx", images(), judge=judge, max_drop=0.05)
    with pytest.raises(ExportError, match=r"worse by 0\.3"):
        quantize(
            found,
            tmp_path / "net8.onnx",
            images(),
            judge=judge,
            higher_is_better=False,
            max_drop=0.05,
        )
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_int8_of_a_fixed_batch(tmp_path):
    found = export(Net(), images(1, 4)[0], tmp_path / "net.onnx", dynamic=False)
    small = quantize(found, tmp_path / "net8.onnx", images(2, 6), max_drop=1)
    assert small.exported.batch == 4
    assert small.exported.module()(images(1, 6)[0])["logits"].shape == (6, 5)


def test_int8_is_for_onnx(tmp_path):
    found = export(Net(), X, tmp_path / "net.pt2", to="torch-export")
    with pytest.raises(ConfigError, match=r"is of torch-export\. Export to onnx"):
        quantize(found, tmp_path / "net8.onnx", images())
    with pytest.raises(ConfigError, match="must not be negative, got max_drop=-1"):
        quantize(export(Net(), X, tmp_path / "n.onnx"), tmp_path / "n8.onnx", [X], max_drop=-1)
