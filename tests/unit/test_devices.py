"""Devices by name: those that are there, and a clear word about those that are not."""

import re
from types import SimpleNamespace

import pytest
import torch

from prunella.errors import ConfigError
from prunella.model.devices import device_named
from prunella.runtimes import Runtime
from prunella.runtimes.in_torch import device_of


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    there = SimpleNamespace(
        is_available=lambda: True,
        current_accelerator=lambda: torch.device("cuda"),
        device_count=lambda: 2,
        current_device_index=lambda: 1,
    )
    monkeypatch.setattr(torch, "accelerator", there)


@pytest.mark.parametrize("name", ["nope", "", "meta", "cuda:99", "cuda:-1", "cuda:x", "cpu cpu"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"no device `{name}` on this machine. It see")):
        device_named(name)


def test_the_cpu_is_always_there() -> None:
    assert device_named("cpu") == torch.device("cpu")
    assert device_named("cpu:0").type == "cpu"


@pytest.mark.usefixtures("two_gpus")
def test_accelerators_by_number() -> None:
    assert device_named("cuda") == torch.device("cuda")
    assert device_named("cuda:1") == torch.device("cuda:1")
    assert device_of(Runtime.of("torch:device=cuda")) == torch.device("cuda:1")
    with pytest.raises(ConfigError, match=r"no device `cuda:2` .*It sees cpu, cuda:0, cuda:1"):
        device_named("cuda:2")
    with pytest.raises(ConfigError, match="no device `xpu`"):
        device_named("xpu")


def test_a_runtime_asks_the_same() -> None:
    with pytest.raises(ConfigError, match="torch sees no device `cuda:x`"):
        device_of(Runtime.of("torch:device=cuda:x"))
