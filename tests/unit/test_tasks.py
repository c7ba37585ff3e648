"""Tasks: loading a user's file, judging a model, the built-in images."""

import operator
import os
import sys
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import sklearn.datasets  # noqa: F401  its first import sets environment variables
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from prunella import tasks
from prunella.errors import ConfigError, TaskError
from prunella.progress import duration, line, rich_progress, silent
from prunella.tasks import Metric, Task, cifar10, digits
from prunella.tasks._cifar_files import TRAIN_FILES
from prunella.tasks._cifar_resnet import CifarResNet
from prunella.tasks._images import ImageBatches, crop, mix
from tests.unit.small_task import Points, small_model, small_task

DATA = Path(os.environ.get("PRUNELLA_DATA", "../shared/data"))
has_cifar10 = pytest.mark.skipif(
    not (DATA / "cifar10" / "test_batch.npz").is_file()
    or not (DATA / "weights" / "cifar10_resnet20.safetensors").is_file(),
    reason=f"needs CIFAR-10 and its pretrained weights in `{DATA}` (set PRUNELLA_DATA)",
)


# ---- loading


def write(folder: Path, text: str) -> str:
    path = folder / "my_task.py"
    path.write_text(text)
    return str(path)


GOOD = "from tests.unit.small_task import small_task\n"


def test_a_file_with_a_task(tmp_path: Path) -> None:
    assert tasks.load(write(tmp_path, f"{GOOD}task = small_task()")).name == "points"


def test_a_file_with_a_function_and_options(tmp_path: Path) -> None:
    text = f"{GOOD}from dataclasses import replace\n"
    text += "def task(name='x', progress=None):\n    assert progress\n"
    text += "    return replace(small_task(), name=name)"
    spec = write(tmp_path, text)
    assert tasks.load(spec, name="mine", progress=silent).name == "mine"
    with pytest.raises(
        ConfigError, match=r"cannot take these options: .*'depht'. It accepts: name$"
    ):
        tasks.load(spec, depht=20)


def test_a_file_imports_its_neighbours_and_has_dataclasses(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_my_task.py").write_text("NAME = 'neighbour'")
    text = f"from __future__ import annotations\n{GOOD}from dataclasses import dataclass, replace\n"
    text += "import neighbour_of_my_task\n@dataclass\nclass Options:\n    size: int = 3\n"
    text += "task = replace(small_task(), name=neighbour_of_my_task.NAME)"
    assert tasks.load(write(tmp_path, text)).name == "neighbour"


def test_functions_of_a_file_import_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "net_of_my_task.py").write_text("from torch import nn\nnet = nn.Linear(2, 2)")
    text = f"{GOOD}from dataclasses import replace\ndef model():\n    import net_of_my_task\n"
    text += "    return net_of_my_task.net\ntask = replace(small_task(), model=model)"
    spec = write(tmp_path, text)
    for _ in range(2):
        assert isinstance(tasks.model_of(tasks.load(spec)), nn.Linear)
    assert sys.path.count(str(tmp_path)) == 1


def test_a_file_that_raises_leaves_no_path_behind(tmp_path: Path) -> None:
    before = [*sys.path]
    with pytest.raises(TaskError, match="raised at line 1"):
        tasks.load(write(tmp_path, "1 / 0"))
    assert sys.path == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", r"must define `task`, .*; found nothing of that name"),
        ("task = 3", "found int"),
        ("def task():\n    return None", "must define `task`"),
        ("import os\n\n1 / 0", r"raised at line 3: ZeroDivisionError: division by zero"),
        ("def task(:", r"raised at line 1: SyntaxError"),
        ("import sys\nsys.exit(3)", r"raised at line 2: SystemExit: 3"),
        (
            "def task():\n    raise OSError('no network')",
            "raised at line 2: OSError: no network. Repair",
        ),
    ],
)
def test_bad_files(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=message):
        tasks.load(write(tmp_path, text))


def test_example_inputs_are_a_tuple(tmp_path: Path) -> None:
    message = r"`example_inputs` of task `points` is a tuple .* got Tensor: write `\(x,\)`"
    with pytest.raises(ConfigError, match=message):
        replace(small_task(), example_inputs=torch.zeros(1, 4))  # type: ignore[arg-type]
    text = "import dataclasses, torch\ntask = dataclasses.replace(small_task(), example_inputs="
    with pytest.raises(TaskError, match=rf"raised at line 3: ConfigError: {message}"):
        tasks.load(write(tmp_path, f"{GOOD}{text}torch.zeros(1, 4))"))


def test_options_for_a_task_that_takes_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes no options, got depth"):
        tasks.load(write(tmp_path, f"{GOOD}task = small_task()"), depth=3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", r"there is no task `digit`. Did you mean `digits`\? .* cifar10, digits"),
        ("imagenet", "there is no task `imagenet`. A task is one of"),
        ("nowhere/my_task.py", r"there is no task file `nowhere/my_task.py` \(looked in `/"),
    ],
)
def test_unknown_tasks(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tasks.load(spec)


# ---- judging


def test_evaluate_and_modes() -> None:
    model = small_model()
    model[1].eval()  # type: ignore[index]
    flags = [module.training for module in model.modules()]
    value = tasks.evaluate(model, small_task(), "valid")
    assert [module.training for module in model.modules()] == flags
    data, right = Points(1), 0
    with torch.no_grad():
        right = int((model.eval()(data.points).argmax(1) == data.labels).sum())
    assert value == right / len(data.labels)


def metric(value: float) -> Metric:
    return Metric("score", higher_is_better=True, compute=lambda pairs: len(list(pairs)) * value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_metric_not_finite(value: float) -> None:
    with pytest.raises(
        TaskError, match=rf"metric `score` of task `points` is {value} on split `test`"
    ):
        tasks.evaluate(small_model(), small_task(metric=metric(value)), "test")


def test_metric_that_raises() -> None:
    bad = Metric("score", higher_is_better=True, compute=lambda pairs: next(iter(pairs))[0]["x"])
    with pytest.raises(TaskError, match="judging the model on split `valid` failed: TypeError"):
        tasks.evaluate(small_model(), small_task(metric=bad), "valid")


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (None, "NoneType"),
        ({"accuracy": 1.0}, "dict"),
        (torch.ones(2), r"Tensor of shape \(2,\)"),
        (np.ones(2), r"ndarray of shape \(2,\)"),
    ],
)
def test_metric_that_is_no_number(value: Any, what: str) -> None:
    task = small_task(metric=Metric("odd", higher_is_better=True, compute=lambda pairs: value))
    with pytest.raises(TaskError, match=f"metric `odd` of task .* computed {what}, .*Return one"):
        tasks.evaluate(small_model(), task, "valid")


def test_loader_that_raises_names_split_and_batch() -> None:
    task = small_task()
    broken = task.data("valid")
    broken.raise_at = (0, 3)  # type: ignore[attr-defined]
    model = small_model()
    with pytest.raises(
        TaskError,
        match=r"split `valid` raised at batch 3: RuntimeError: the disk .* at .*:\d+ \(",
    ) as caught:
        tasks.evaluate(model, task, "valid")
    assert caught.value.__cause__ is broken.error  # type: ignore[attr-defined]
    assert model.training


def test_empty_and_exhausted_loaders() -> None:
    once = iter(list(Points(1)))
    task = replace(small_task(), data=lambda split: once)
    tasks.evaluate(small_model(), task, "valid")
    with pytest.raises(TaskError, match=r"gave no batch. It must be iterable again and again"):
        tasks.evaluate(small_model(), task, "valid")


def test_a_length_that_is_not_known() -> None:
    class Stream(list[int]):
        def __len__(self) -> int:
            raise NotImplementedError

    assert [tasks.size_of(loader) for loader in ([1], iter([1]), Stream())] == [1, None, None]


def test_split_that_cannot_be_opened() -> None:
    def data(split: str) -> Any:
        raise FileNotFoundError("/data/valid")

    with pytest.raises(
        TaskError, match=r"split `valid`: FileNotFoundError: /data/valid at .*:\d+ \("
    ):
        tasks.evaluate(small_model(), replace(small_task(), data=data), "valid")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: Path("/none/w.pt").read_bytes(),
            r"raised FileNotFoundError at .*:\d+ .*w\.pt.* Repair it there",
        ),
        (lambda: None, "returns the trained model, a torch.nn.Module, got NoneType"),
        (lambda: small_model().state_dict(), r".* got OrderedDict\. A state dict has to be loaded"),
    ],
)
def test_a_model_that_is_none(model: Any, message: str) -> None:
    with pytest.raises(TaskError, match=rf"`model` of task `points` {message}"):
        tasks.model_of(replace(small_task(), model=model))


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("metric", lambda pairs: 1.0, "is a `prunella.tasks.Metric`, got function: write"),
        ("metric", None, "is a `prunella.tasks.Metric`, got NoneType"),
        ("model", nn.Linear(2, 2), "is a function that returns the trained model, got a Linear"),
        ("data", [], "is a function, got list"),
        ("loss", None, "is a function, got NoneType"),
        ("inputs", 3, "is a function, got int"),
    ],
)
def test_parts_of_another_kind_are_named(part: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"`{part}` of task `points` {message}"):
        replace(small_task(), **{part: value})


def test_better_follows_the_direction() -> None:
    assert Metric("accuracy", True, len).better(0.9, 0.8)  # type: ignore[arg-type]
    assert Metric("loss", False, len).better(0.1, 0.8)  # type: ignore[arg-type]
    assert not Metric("loss", False, len).better(0.8, 0.8)  # type: ignore[arg-type]


def test_fingerprint_sees_every_value() -> None:
    task = small_task()
    first = tasks.fingerprint(task, "valid")
    assert first == tasks.fingerprint(small_task(), "valid")
    assert first != tasks.fingerprint(task, "test")
    task.data("valid").points[-1, -1] += 1e-3  # type: ignore[attr-defined]
    assert first != tasks.fingerprint(task, "valid")


def test_to_device_keeps_the_structure() -> None:
    device = torch.device("meta")
    moved = tasks.to_device({"a": [torch.zeros(1), "text"], "b": (torch.zeros(2), 3)}, device)
    assert moved["a"][0].device == device
    assert moved["a"][1] == "text"
    assert moved["b"][0].device == device
    assert moved["b"][1] == 3


class Encoding(UserDict[str, Any]):
    """As tokenizers return: a mapping that carries more than its items, read as attributes too."""

    def __init__(self, data: dict[str, Any], fast: bool) -> None:
        super().__init__(data)
        self.fast = fast

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True, slots=True)
class Sample:
    x: Tensor
    parts: list[Any]


Pair = namedtuple("Pair", "x parts")


@pytest.mark.parametrize(
    "made",
    [
        lambda x: Encoding({"x": x, "parts": [x]}, fast=True),
        lambda x: OrderedDict(x=x, parts=[x]),
        lambda x: defaultdict(list, x=x, parts=[x]),
        lambda x: MappingProxyType({"x": x, "parts": [x]}),
        lambda x: Sample(x, [x]),
        lambda x: Pair(x, [x]),
    ],
)
def test_to_device_keeps_the_class(made: Callable[[Tensor], Any]) -> None:
    x = torch.zeros(1)
    given = made(x)
    moved = tasks.to_device([given], torch.device("meta"))[0]
    assert type(moved) is (dict if isinstance(given, MappingProxyType) else type(given))
    read = operator.itemgetter if isinstance(given, Mapping) else operator.attrgetter
    assert read("x")(moved).is_meta
    assert read("parts")(moved)[0].is_meta
    assert read("x")(given) is x, "the loader's own batch stays what it was"
    assert read("parts")(given)[0] is x
    if isinstance(moved, Encoding):
        assert moved.fast
        assert moved.x.is_meta
    if isinstance(moved, defaultdict):
        assert moved["new"] == []


# ---- images


def images(count: int = 10, **options: Any) -> ImageBatches:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, 8, 8), generator=random, dtype=torch.uint8)
    settings = {"batch_size": 4, "mean": (0.0,) * 3, "std": (1 / 255,) * 3, **options}
    return ImageBatches(pixels, torch.arange(count), **settings)


def test_judged_images_are_in_order_and_normalised() -> None:
    batches = list(images(mean=(0.5, 0.0, 0.0), std=(1.0, 1.0, 1 / 255)))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([labels for _, labels in batches]), torch.arange(10))
    raw = images()._images[:4].float()
    assert torch.allclose(batches[0][0][:, 0], raw[:, 0] / 255 - 0.5, atol=1e-6)
    assert torch.allclose(batches[0][0][:, 2], raw[:, 2], atol=1e-4)


def test_training_images_are_a_function_of_seed_and_epoch() -> None:
    def epoch(number: int, seed: int = 0) -> torch.Tensor:
        loader = images(train=True, pad=2, flip=True, seed=seed)
        list(loader)  # what came before makes no difference
        loader.set_epoch(number)
        return torch.cat([pixels for pixels, _ in loader])

    assert torch.equal(epoch(3), epoch(3))
    assert not torch.equal(epoch(3), epoch(4))
    assert not torch.equal(epoch(3), epoch(3, seed=1))


def test_each_training_image_comes_once_and_none_alone() -> None:
    loader = images(count=9, train=True)
    assert len(loader) == len(list(loader)) == 2  # the ninth would be a batch of one
    loader = images(count=10, train=True)
    assert sorted(torch.cat([labels for _, labels in loader]).tolist()) == list(range(10))


def test_crop_is_the_window_of_the_padded_image() -> None:
    pixels = images()._images
    shifts = torch.tensor([[0, 4, 2, 1] + [0] * 6, [4, 0, 2, 3] + [0] * 6])
    padded = nn.functional.pad(pixels, (2, 2, 2, 2))
    cut = crop(pixels, shifts, 2)
    for index in range(10):
        row, column = shifts[0, index], shifts[1, index]
        assert torch.equal(cut[index], padded[index, :, row : row + 8, column : column + 8])
    assert torch.equal(cut[2], pixels[2])


def test_flips_are_half_of_the_images() -> None:
    loader = images(count=400, batch_size=400, train=True, flip=True)
    found, labels = next(iter(loader))
    raw = images(count=400)._images.float()[labels]
    flipped = (found - raw.flip(3)).abs().amax((1, 2, 3)) < 1e-2
    kept = (found - raw).abs().amax((1, 2, 3)) < 1e-2
    assert bool((flipped | kept).all())
    assert 150 < int(flipped.sum()) < 250


def test_mix() -> None:
    seeds = {mix(seed, epoch) for seed in range(20) for epoch in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)


# ---- digits


def test_digits_splits_are_apart_and_stratified() -> None:
    labels = np.random.RandomState(1).randint(0, 10, 1797)
    parts = {split: digits._indices(labels, split) for split in ("train", "valid", "test")}
    together = torch.cat(list(parts.values()))
    assert sorted(together.tolist()) == list(range(1797))
    for split, share in (("train", 0.6), ("valid", 0.2), ("test", 0.2)):
        assert len(parts[split]) == pytest.approx(share * 1797, rel=0.02)
        counts = np.bincount(labels[parts[split]], minlength=10)
        assert counts == pytest.approx(share * np.bincount(labels), abs=1)


@pytest.mark.slow
def test_digits_reaches_98_percent_and_is_kept(tmp_path: Path) -> None:
    task = tasks.load("digits", folder=str(tmp_path))
    model = task.model()
    assert tasks.evaluate(model, task, "test") >= 0.98
    assert not model.training
    again = tasks.load("digits", folder=str(tmp_path)).model()
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
    assert model(*task.example_inputs).shape == (1, 10)


def test_digits_damaged_cache_is_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits, "EPOCHS", 1)
    task = tasks.load("digits", folder=tmp_path, limit=128)
    first = task.model()
    (path,) = tmp_path.glob("digits-*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    again = task.model()
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert path.stat().st_size > 100


def test_digits_without_a_place_for_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(digits, "EPOCHS", 1)
    (tmp_path / "file").write_text("in the way")
    task = tasks.load("digits", folder=tmp_path / "file", limit=64)
    assert isinstance(task.model(), digits.DigitsNet)
    assert "were not kept" in caplog.text


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"limit": 0}])
@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_options_are_checked(name: str, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="is at least 1"):
        tasks.load(name, **options)


# ---- cifar10


def strips(folder: Path, count: int = 40) -> None:
    """Write a small CIFAR-10 in the lossless form."""
    import io

    from PIL import Image

    random = np.random.RandomState(0)
    (folder / "cifar10").mkdir(parents=True)
    for name in (*TRAIN_FILES, "test_batch.npz"):
        parts: dict[str, Any] = {"labels": random.randint(0, 10, count).astype(np.uint8)}
        for strip in range(2):
            pixels = random.randint(0, 256, (count // 2 * 32, 32, 3)).astype(np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            parts[f"s{strip:02d}"] = np.frombuffer(file.getvalue(), np.uint8)
        np.savez(folder / "cifar10" / name, **parts)


def test_cifar10_from_strips(tmp_path: Path) -> None:
    strips(tmp_path)
    task = tasks.load("cifar10", data=tmp_path, batch_size=16)
    train, valid, test = (
        [labels for _, labels in task.data(s)] for s in ("train", "valid", "test")
    )
    assert [sum(map(len, part)) for part in (train, valid, test)] == [200, 20, 20]
    assert sorted(torch.cat([*valid, *test]).tolist()) == sorted(labels_of(tmp_path, "test"))
    other = tasks.load("cifar10", data=tmp_path, held_out="train")
    parts = [[labels for _, labels in other.data(s)] for s in ("train", "valid", "test")]
    assert [sum(map(len, part)) for part in parts] == [180, 20, 40]
    assert sorted(torch.cat([*parts[0], *parts[1]]).tolist()) == sorted(labels_of(tmp_path, "data"))
    assert next(iter(task.data("train")))[0].shape == (16, 3, 32, 32)
    few = tasks.load("cifar10", data=tmp_path, limit=10)
    assert [sum(len(labels) for _, labels in few.data(s)) for s in ("train", "valid", "test")] == [
        10,
        10,
        10,
    ]


def labels_of(folder: Path, kind: str) -> list[int]:
    files = sorted((folder / "cifar10").glob(f"{kind}*.npz"))
    return [int(label) for file in files for label in np.load(file)["labels"]]


@pytest.mark.parametrize(("source", "count"), [("train", 50_000), ("test", 10_000)])
def test_cifar10_splits_are_apart(source: cifar10.HeldOut, count: int) -> None:
    valid, rest = (cifar10._indices(count, source, valid=held) for held in (True, False))
    assert len(valid) == 5_000
    assert sorted(torch.cat([rest, valid]).tolist()) == list(range(count))
    assert torch.equal(valid, cifar10._indices(count, source, valid=True))


def test_cifar10_holds_out_one_of_two() -> None:
    with pytest.raises(ConfigError, match=r"held_out is one of \('test', 'train'\), got .*valid"):
        cifar10.task(held_out="valid")  # type: ignore[arg-type]


def test_cifar10_weights(tmp_path: Path) -> None:
    strips(tmp_path)
    with pytest.raises(TaskError, match=r"no pretrained weights `.*cifar10_resnet32.safetensors`"):
        tasks.load("cifar10", data=tmp_path, depth=32).model()
    path = tmp_path / "mine.safetensors"
    save_file(CifarResNet(20).state_dict(), path)
    model = tasks.load("cifar10", data=tmp_path, weights=path).model()
    assert not model.training
    with pytest.raises(
        TaskError, match=r"of ResNet-32: `layer1.3.* has shape None.*option `depth`"
    ):
        tasks.load("cifar10", data=tmp_path, weights=path, depth=32).model()


def test_cifar10_missing_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tasks.load("cifar10", data=tmp_path)
    with pytest.raises(
        TaskError, match=r"neither `cifar10/test_batch.npz` nor `cifar-10-batches-py`.*Set PRUN"
    ):
        tasks.evaluate(CifarResNet(20), task, "valid")
    with pytest.raises(TaskError, match=r"there is no folder `.*nowhere`, which option `data`"):
        tasks.load("cifar10", data=tmp_path / "nowhere")
    with monkeypatch.context() as patch:
        patch.setenv("PRUNELLA_DATA", str(tmp_path / "gone"))
        with pytest.raises(TaskError, match="which the environment variable PRUNELLA_DATA names"):
            tasks.load("cifar10")


def test_cifar10_damaged_strip(tmp_path: Path) -> None:
    strips(tmp_path)
    path = tmp_path / "cifar10" / "test_batch.npz"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(
        TaskError, match=r"test_batch.npz` is missing or damaged .*Put the original"
    ):
        tasks.load("cifar10", data=tmp_path).data("test")


def test_cifar10_in_torchvision_s_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    (tmp_path / "cifar-10-batches-py").mkdir()
    task = tasks.load("cifar10", data=tmp_path, held_out="train")
    with pytest.raises(TaskError, match="cifar-10-batches-py` is incomplete or damaged"):
        task.data("valid")

    class Small:
        def __init__(self, root: str, train: bool, download: bool) -> None:
            assert root == str(tmp_path)
            self.data = np.arange(20 * 32 * 32 * 3).reshape(20, 32, 32, 3).astype(np.uint8)
            self.targets = list(range(10)) * 2

    monkeypatch.setattr(datasets, "CIFAR10", Small)
    pixels, labels = next(iter(task.data("test")))
    assert pixels.shape == (20, 3, 32, 32)
    wanted = (Small(str(tmp_path), False, False).data[3, 5, 7] / 255 - cifar10.MEAN) / cifar10.STD
    assert pixels[3, :, 5, 7].tolist() == pytest.approx(wanted.tolist(), abs=1e-5)
    assert labels[3] == 3


def test_cifar10_without_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    monkeypatch.setitem(__import__("sys").modules, "torchvision.datasets", None)
    with pytest.raises(TaskError, match=r"needs torchvision: pip install 'prunella\[vision\]'"):
        tasks.load("cifar10", data=tmp_path).data("valid")


def test_cifar10_depth() -> None:
    with pytest.raises(ConfigError, match=r"depth is one of \(20, 32, 44, 56\), got depth=21"):
        tasks.load("cifar10", depth=21)


@pytest.mark.parametrize(
    ("depth", "params"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018)]
)
def test_resnet_sizes(depth: int, params: int) -> None:
    assert sum(value.numel() for value in CifarResNet(depth).parameters()) == params


@has_cifar10
@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_pretrained_weights_fit(depth: int) -> None:
    tasks.load("cifar10", depth=depth, data=DATA).model()


@has_cifar10
@pytest.mark.slow
def test_resnet20_is_91_73_percent() -> None:
    task: Task = tasks.load("cifar10", data=DATA, held_out="train")
    assert tasks.evaluate(task.model(), task, "test") == 0.9173


# ---- progress


def test_progress_lines() -> None:
    assert line("valid", 30, 120, 10.0) == "valid: 30/120 (25%), 30 s left"
    assert line("valid", 0, 120, 10.0) == "valid: 0 in 10 s"
    assert line("counting", 30, None, 75.0) == "counting: 30 in 1 min 15 s"


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [(3.25, "3.2 s"), (9.0, "9 s"), (42.4, "42 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_duration(seconds: float, wanted: str) -> None:
    assert duration(seconds) == wanted


def test_progress_in_a_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0.0, 4.0, 11.0, 12.0, 30.0])
    monkeypatch.setattr("prunella.progress.time.monotonic", lambda: next(times))
    with rich_progress("valid [x]", 4) as advance:
        for _ in range(3):
            advance(1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "valid [x]: 2/4 (50%), 11 s left",
        "valid [x]: done, 3 in 30 s",
    ]


def test_progress_where_nothing_can_move(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "dumb")
    times = iter([0.0, 11.0, 30.0])
    monkeypatch.setattr("prunella.progress.time.monotonic", lambda: next(times))
    with rich_progress("valid", 4) as advance:
        advance(1)
    assert capsys.readouterr().err.splitlines()[0] == "valid: 1/4 (25%), 33 s left"


def test_progress_on_a_terminal_nests(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with rich_progress("outer", 2) as outer:
        with rich_progress("inner", 3) as inner:
            inner(3)
        outer(1)
    with rich_progress("later", None) as later:
        later(1)
    shown = capsys.readouterr().err
    assert "outer" in shown
    assert "later" in shown
