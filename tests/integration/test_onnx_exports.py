"""What exporters make of real networks, pruned as files; and the command line."""

import os
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import pytest
import torch
import torchvision
from torch import nn
from typer.testing import CliRunner

import prunella
from prunella.cli import app, onnx_files
from tests.onnx_models import convs, run, saved

SLOW = pytest.mark.slow
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def lively(net: nn.Module) -> nn.Module:
    """Give weights and statistics at random, so that signals neither die nor explode."""
    generator = torch.Generator().manual_seed(0)

    def near(tensor, mean, spread):
        tensor.data.copy_(mean + spread * torch.randn(tensor.shape, generator=generator))

    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            near(module.weight, 0, (1.8 / module.weight[0].numel()) ** 0.5)
        elif isinstance(module, nn.BatchNorm2d):
            near(module.running_mean, 0, 0.1)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            near(module.weight, 1, 0.1)
            near(module.bias, 0, 0.1)
    return net.eval()


def exported(net: nn.Module, path: Path, *, dynamo: bool, size: int = 64) -> Path:
    """Export a network of images with an open batch, by torch's old exporter or its new one."""
    images = torch.randn(2, 3, size, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            batch = torch.export.Dim("batch")
            torch.onnx.export(
                net, (images,), path, dynamo=True, dynamic_shapes=({0: batch},),
                input_names=["images"], external_data=False, verbose=False,
            )  # fmt: skip
        else:
            torch.onnx.export(
                net, (images,), path, dynamo=False, input_names=["images"],
                output_names=["y"], dynamic_axes={"images": {0: "batch"}, "y": {0: "batch"}},
            )  # fmt: skip
    return path


def vit() -> nn.Module:
    return torchvision.models.VisionTransformer(64, 16, 2, 8, 64, 128, num_classes=10)


NETWORKS = [
    ("mobilenet_v3_small", torchvision.models.mobilenet_v3_small, False, 3),
    ("shufflenet_v2_x0_5", torchvision.models.shufflenet_v2_x0_5, False, 3),
    ("vit", vit, False, 4),
    ("resnet18", torchvision.models.resnet18, True, 3),
    ("vit", vit, True, 4),
    pytest.param("efficientnet_b0", torchvision.models.efficientnet_b0, True, 3, marks=SLOW),
    pytest.param("efficientnet_b0", torchvision.models.efficientnet_b0, False, 3, marks=SLOW),
    pytest.param("mobilenet_v2", torchvision.models.mobilenet_v2, True, 3, marks=SLOW),
]


@pytest.mark.parametrize(("name", "build", "dynamo", "most"), NETWORKS)
def test_a_network_as_torch_exports_it(name, build, dynamo, most, tmp_path):
    path = exported(lively(build()), tmp_path / f"{name}.onnx", dynamo=dynamo)
    made = prunella.prune_onnx(path, tmp_path / "small.onnx", macs=0.5)
    assert 0.49 < made.plan.after.macs / made.plan.before.macs <= 0.5
    assert made.certificate.error < 1e-9
    assert made.parity < 1e-4
    assert made.summary.split("frozen: ")[1].startswith(tuple(f"{n} groups" for n in range(most)))
    images = np.zeros((3, 3, 64, 64), np.float32)
    assert run(made.path, images=images)[0].shape[0] == 3
    assert made.path.stat().st_size < 0.9 * path.stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov8n", "yolo11n"])
def test_yolo(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with mock.patch.dict(os.environ):  # the library sets some variables
        path = exported_yolo(name, tmp_path)
    made = prunella.prune_onnx(
        path, tmp_path / "small.onnx", macs=0.5, shapes={"images": (1, 3, 128, 128)}
    )
    assert made.plan.after.macs <= 0.5 * made.plan.before.macs
    assert made.certificate.error < 1e-9
    # The grid is as open as it was: boxes of 20x12, 10x6 and 5x3 places.
    wide = np.zeros((2, 3, 160, 96), np.float32)
    assert run(made.path, images=wide)[0].shape == (2, 84, 240 + 60 + 15)


def exported_yolo(name: str, folder: Path) -> Path:
    """Export a detector with open batch, height and width, in the form most files have."""
    ultralytics = pytest.importorskip("ultralytics")
    net = lively(ultralytics.YOLO(f"{name}.yaml").model)
    for module in net.modules():
        if hasattr(module, "export"):
            module.export, module.format, module.dynamic = True, "onnx", True
    images, path = torch.randn(1, 3, 128, 128), folder / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net(images)
        torch.onnx.export(
            net, (images,), path, dynamo=False, input_names=["images"],
            dynamic_axes={"images": {0: "batch", 2: "height", 3: "width"}}, opset_version=12,
        )  # fmt: skip
    return path


@pytest.mark.parametrize("name", ["squeezenet", "resnet50"])
def test_a_file_of_the_standards_own_with_weights_that_nodes_fill(name, tmp_path):
    made = prunella.prune_onnx(LIGHT / f"light_{name}.onnx", tmp_path / "small.onnx", macs=0.5)
    assert made.plan.after.macs <= 0.5 * made.plan.before.macs
    dense, small = onnx.load(str(LIGHT / f"light_{name}.onnx")), onnx.load(str(made.path))
    held = {proto.name for proto in dense.graph.initializer}
    (entry,) = [v for v in dense.graph.input if v.name not in held]
    assert [v.name for v in small.graph.output] == [v.name for v in dense.graph.output]
    (found,) = run(made.path, **{entry.name: np.ones((1, 3, 224, 224), np.float32)})
    (wanted,) = dense.graph.output
    assert list(found.shape) == [d.dim_value for d in wanted.type.tensor_type.shape.dim]


# -- the command line


def call(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def test_prune_takes_an_onnx_file(tmp_path):
    path = saved(convs(), tmp_path)
    images = np.random.default_rng(0).standard_normal((16, 3, 12, 12)).astype(np.float32)
    np.savez(tmp_path / "data.npz", image=images)
    made = call(
        "prune", path, "--calibration", tmp_path / "data.npz", "--macs", "50%", "--quiet",
        "--output", tmp_path / "small.onnx",
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    assert "MACs" in made.stdout
    assert "stem" in made.stdout
    for text in ("proven equal to the masked network", "ONNX Runtime makes the same",
                 "on the calibration data outputs moved by", "small.plan.json"):  # fmt: skip
        assert text in made.stderr
    assert run(tmp_path / "small.onnx", image=images[:2])[0].shape == (2, 5)


@pytest.mark.parametrize(
    ("words", "means"),
    [
        (["model.onnx", "--macs", "0.5"], True),
        (["--macs", "0.5", "--ratio=0.1", "model.onnx", "-o", "small.onnx"], True),
        (["task.py", "--task.options.file", "model.onnx"], False),
        (["--task.options.file", "model.onnx", "task.py"], False),
        ([], False),
    ],
)
def test_only_a_file_in_the_place_of_the_task_is_meant(words, means):
    assert onnx_files.meant(words) is means


def test_a_dry_run_writes_nothing(tmp_path):
    path = saved(convs(), tmp_path)
    made = call("prune", path, "--budget.macs", "0.5", "--dry-run", "-o", tmp_path / "small.onnx")
    assert made.exit_code == 0, made.output
    assert "MACs" in made.stdout
    assert "nothing was written" in made.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--macs", "a lot"], "macs is a share of the dense model"),
        (["--colour", "red"], "unrecognized arguments: --colour red"),
        (["--macs", "0.5", "--finetune.epochs", "3"], "`--finetune.epochs` is a setting of a task"),
        (["--macs", "0.5", "--shape", "image=big"], "give it as NAME=1x3x224x224"),
        ([], "give a budget"),
    ],
)
def test_what_is_typed_wrongly(options, what, tmp_path):
    path = saved(convs(), tmp_path)
    made = call("prune", path, *options, "--output", tmp_path / "small.onnx")
    assert made.exit_code == 2
    assert what in made.stderr
    assert not (tmp_path / "small.onnx").exists()


def test_a_file_that_is_not_onnx_is_said_in_two_lines(tmp_path):
    (tmp_path / "model.onnx").write_text("no model at all")
    made = call("prune", tmp_path / "model.onnx", "--macs", "0.5")
    assert made.exit_code == 2
    assert "is not an ONNX file" in made.stderr
    assert "hint: Give a file that `onnx.checker.check_model` accepts" in made.stderr
