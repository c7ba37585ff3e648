"""Where the data and the pretrained networks are: the folder that `PRUNELLA_DATA` names."""

import importlib.util
import os
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

from safetensors.torch import load_file
from torch import Tensor

_DEFAULT = Path(__file__).resolve().parents[3] / "shared" / "data"


def folder() -> Path:
    """Return the folder of the data.

    Raises:
        FileNotFoundError: There is none.
    """
    found = Path(os.environ.get("PRUNELLA_DATA", _DEFAULT))
    if not (found / "models.py").exists():
        raise FileNotFoundError(
            f"no data in `{found}`: set PRUNELLA_DATA to the folder that holds models.py, "
            "load_more.py, weights/, camvid/, imagenet1k_sample/ and text/"
        )
    return found


def networks() -> ModuleType:
    """Import the classes of the networks whose weights are there."""
    return _module("models")


def loaders() -> ModuleType:
    """Import the functions that read the data."""
    return _module("load_more")


def weights(name: str) -> dict[str, Tensor]:
    """Read the state dict of one network."""
    return load_file(folder() / "weights" / f"{name}.safetensors")


@cache
def _module(name: str) -> ModuleType:
    path = folder() / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"prunella_data_{name}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"`{path}` cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
