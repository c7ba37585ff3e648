"""What every test gets: seeds, one thread, and a look at what it left behind."""

import gc
import os
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

# Set by torch itself when it first exports or compiles.
TORCHS_OWN = {
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR",
}

# Progress bars and colours would differ between a terminal and CI.
os.environ.setdefault("NO_COLOR", "1")
# The pool of threads that inductor compiles with would outlive a test.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.accelerator.is_available():
        pytest.skip("needs an accelerator; this machine has none")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # third-party code draws from it


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """Fail a test that leaves an environment variable, a thread or torch's settings changed."""
    variables = dict(os.environ)
    threads = {thread for thread in threading.enumerate() if not thread.daemon}
    settings = _torch_settings()
    yield
    changed = {
        name
        for name in variables.keys() | os.environ.keys()
        if variables.get(name) != os.environ.get(name)
    } - {"PYTEST_CURRENT_TEST", *TORCHS_OWN}
    assert not changed, f"the test left environment variables changed: {sorted(changed)}"
    left = _left(threads)
    for _ in range(50):  # a pool that nobody holds any more ends its threads by and by
        if not left:
            break
        gc.collect()
        time.sleep(0.1)
        left = _left(threads)
    assert not left, f"the test left threads running: {sorted(map(str, left))}"
    assert _torch_settings() == settings, "the test left torch's settings changed"


def _left(before: set[threading.Thread]) -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if not thread.daemon} - before


def _torch_settings() -> dict[str, object]:
    return {
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
