import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunella.errors import ConfigError, ExportError
from prunella.runtimes import RUNTIMES, Runtime, prepare, prepare_onnx
from prunella.runtimes.converting import write_onnx
from prunella.runtimes.flattening import Flat, form_of, output_names

# Compiling takes seconds and a C++ compiler.
QUICK = [name for name in RUNTIMES if name != "torch-compile"]


class Two(nn.Module):
    """Two inputs, one of them optional, a constant and a dictionary of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.9)
        self.head = nn.Linear(8, 5)

    def forward(self, image: Tensor, scale: float, *, bias: Tensor) -> dict[str, Tensor]:
        hidden = self.drop(self.norm(self.conv(image))).relu().mean((2, 3))
        return {"logits": self.head(hidden) * scale + bias, "hidden": hidden}


def two() -> tuple[nn.Module, tuple[Tensor, float], dict[str, Tensor]]:
    return Two(), (torch.randn(2, 3, 8, 8), 0.5), {"bias": torch.randn(5)}


@pytest.mark.parametrize(
    ("text", "runtime"),
    [
        ("torch", Runtime()),
        ("onnxruntime", Runtime("onnxruntime")),
        ("onnxruntime:threads=2", Runtime("onnxruntime", threads=2)),
        (
            "openvino:threads=1,dtype=bfloat16",
            Runtime("openvino", threads=1, dtype="bfloat16"),
        ),
        ("torch-compile:device=cuda:1", Runtime("torch-compile", device="cuda:1")),
    ],
)
def test_text_and_back(text, runtime):
    assert Runtime.of(text) == runtime
    assert str(runtime) == text
    assert Runtime.of(runtime) is runtime


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("onnxruntim", "no runtime `onnxruntim`; did you mean `onnxruntime`?"),
        ("tflite", "no runtime `tflite`. Choose of torch, torch-compile, onnxruntime, openvino"),
        ("torch:threads", "`threads` in the runtime `torch:threads` says nothing"),
        ("torch:cores=2", "keys of device, threads, dtype"),
        ("torch:threads=two", "`threads` is a whole number, got threads=two"),
        ("torch:threads=0", "`threads` must be at least 1, got threads=0"),
        ("torch:dtype=float64", "no dtype of a runtime `float64`"),
        ("openvino:device=cuda", "no device of the runtime `openvino` `cuda`"),
        ("onnxruntime:dtype=bfloat16", "ONNX Runtime has no kernels in bfloat16"),
    ],
)
def test_what_there_is_not(text, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        Runtime.of(text)


@pytest.mark.parametrize("name", QUICK)
def test_all_runtimes_compute_what_the_model_does(name):
    model, args, kwargs = two()
    model.train()
    with prepare(model, args, kwargs, f"{name}:threads=1") as ready:
        assert all(module.training for module in model.modules())
        ready.run()
        other = [torch.randn(2, 3, 8, 8), torch.randn(5)]
        found = ready.on([tensor.numpy() for tensor in other])
    expected = model.eval()(other[0], 0.5, bias=other[1])
    for one, tensor in zip(found, expected.values(), strict=True):
        np.testing.assert_allclose(one, tensor.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("name", QUICK)
def test_run_uses_the_example(name):
    model = nn.Linear(4, 2)
    x = torch.randn(3, 4)
    with prepare(model, x, runtime=name) as ready:
        found = ready.run()
    if name == "openvino":
        found = [found[0]]
    output = found if isinstance(found, Tensor) else torch.from_numpy(np.asarray(found[0]))
    torch.testing.assert_close(output, model(x).detach(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "text", ["torch:dtype=float16", "torch:dtype=bfloat16", "onnxruntime:dtype=float16"]
)
def test_half_precision_is_close_and_leaves_the_model_alone(text):
    model, x = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(2, 16)
    with prepare(model, x, runtime=text) as ready:
        (found,) = ready.on([x.numpy()])
    assert model[0].weight.dtype == torch.float32
    assert found.dtype == np.float32
    error = np.abs(found - model(x).detach().numpy()).max()
    assert 0 < error < 0.02


def test_openvino_computes_in_float32_unless_asked():
    model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)), torch.randn(2, 64)
    with prepare(model, x, runtime="openvino") as ready:
        (found,) = ready.on([x.numpy()])
    np.testing.assert_allclose(found, model(x).detach().numpy(), atol=1e-5)


@pytest.mark.slow
def test_compiled_models_of_one_class_do_not_run_out_of_versions():
    x = torch.randn(2, 3)
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for width in (4, 5, 6):
            model = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2))
            with prepare(model, x, runtime="torch-compile:threads=1") as ready:
                torch.testing.assert_close(ready.run(), model(x).detach())
                (found,) = ready.on([x.numpy()])
            np.testing.assert_allclose(found, model(x).detach().numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("runtime", "module", "extra"),
    [
        ("onnxruntime", "onnxruntime", "onnx"),
        ("onnxruntime", "onnxscript", "onnx"),
        ("openvino", "openvino", "openvino"),
    ],
)
def test_a_missing_extra_is_named(monkeypatch, runtime, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"needs `{module}`.*pip install 'prunella\[{extra}\]'"):
        prepare(nn.Linear(2, 2), torch.zeros(1, 2), runtime=runtime)


def test_openvino_is_imported_without_telemetry():
    code = (
        "import sys, torch\n"
        "from prunella.runtimes import prepare\n"
        "prepare(torch.nn.Linear(2, 2), torch.zeros(1, 2), runtime='openvino').run()\n"
        "assert 'openvino' in sys.modules and 'openvino_telemetry' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_cannot_be_prepared_is_told(tmp_path):
    x = torch.zeros(1, 2)
    with pytest.raises(ConfigError, match="meta device computes nothing"):
        prepare(nn.Linear(2, 2, device="meta"), x, runtime="onnxruntime")
    with pytest.raises(ConfigError, match="`torch` runs no ONNX file"):
        prepare_onnx("model.onnx", {}, "torch")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    for runtime in ("onnxruntime", "openvino"):
        with pytest.raises(ExportError, match="cannot load the network"):
            prepare_onnx(broken, {}, runtime)
    if not torch.cuda.is_available():
        for runtime in ("torch:device=cuda", "onnxruntime:device=cuda"):
            with pytest.raises(ConfigError, match=r"cuda|CUDA"):
                prepare(nn.Linear(2, 2), x, runtime=runtime)


def test_a_branch_on_values_is_told():
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if x.sum() > 0 else x - 1

    with pytest.raises(ExportError, match=r"torch\.export cannot capture the model"):
        prepare(Branching(), torch.ones(2), runtime="onnxruntime")


def test_files_and_models_in_memory(tmp_path):
    import onnx

    model, x = nn.Linear(4, 2), torch.randn(3, 4)
    write_onnx(model, x, None, tmp_path / "model.onnx")
    for source in (
        str(tmp_path / "model.onnx"),
        tmp_path / "model.onnx",
        onnx.load(tmp_path / "model.onnx"),
    ):
        for runtime in ("onnxruntime", "openvino"):
            with prepare_onnx(source, {"input": x.numpy()}, runtime) as ready:
                ready.run()
                (found,) = ready.on([x.numpy()])
            np.testing.assert_allclose(found, model(x).detach().numpy(), atol=1e-6)


def test_nothing_is_left_in_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ready = prepare(nn.Linear(2, 2), torch.zeros(1, 2), runtime="onnxruntime")
    assert list(tmp_path.glob("prunella-*"))
    ready.close()
    ready.close()
    assert not list(tmp_path.glob("prunella-*"))

    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if x.sum() > 0 else x - 1

    with pytest.raises(ExportError):
        prepare(Branching(), torch.ones(2), runtime="onnxruntime")
    assert not list(tmp_path.glob("prunella-*"))


def test_inputs_and_outputs_have_the_names_that_the_code_gives_them():
    model, args, kwargs = two()
    form = form_of(model, args, kwargs)
    assert form.names == ("image", "bias")
    assert output_names(model(*args, **kwargs)) == ["logits", "hidden"]
    assert output_names((torch.zeros(1), [torch.zeros(1)])) == ["output_0", "output_1_0"]
    assert form_of(nn.Identity(), torch.zeros(1), None).names == ("input",)
    again, constant = form.arguments(form.example)[0]
    assert again is args[0]
    assert constant == 0.5
    logits, hidden = Flat(model.eval(), form)(*form.example)
    assert (logits.shape, hidden.shape) == ((2, 5), (2, 8))


def test_calls_of_another_form_are_told():
    model, args, kwargs = two()
    form = form_of(model, args, kwargs)
    with pytest.raises(ConfigError, match=r"example inputs are 2 tensors \(image, bias\)"):
        form.tensors(args, {})
    with pytest.raises(ConfigError, match="hold no tensor"):
        form_of(model, (1, 2), None)
