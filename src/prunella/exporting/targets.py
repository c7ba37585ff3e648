"""What a model can be exported to: how each file is written, and how it is run again."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from prunella.errors import ConfigError, WorkspaceError
from prunella.files import located
from prunella.model.modes import evaluating
from prunella.runtimes import Prepared, Runtime, prepare_onnx
from prunella.runtimes.converting import captured, quiet, reason, write_onnx
from prunella.runtimes.flattening import Form, opened
from prunella.runtimes.in_openvino import openvino
from prunella.runtimes.in_torch import in_torch
from prunella.runtimes.runtime import Name


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of file.

    Attributes:
        suffixes: How its name may end.
        runtime: What runs it.
        write: Writes a model that is in evaluation mode: model, form of the call, path, dynamic.
    """

    suffixes: tuple[str, ...]
    runtime: Name
    write: Callable[[nn.Module, Form, Path, bool], None]


def load(path: Path, form: Form, runtime: Runtime) -> Prepared:
    """Load an exported file with the example inputs in place."""
    if runtime.name in ("torch", "torch-compile"):
        if runtime.device != "cpu" or runtime.dtype != "float32":
            raise ConfigError(
                f"a file of torch-export runs as it was captured, on the CPU in float32, not on "
                f"`{runtime}`. Use `{runtime.name}`"
            )
        with quiet():
            program = torch.export.load(path)
        args, kwargs = form.arguments(form.example)
        return in_torch(program.module(), args, kwargs, runtime)
    feeds = {
        name: np.ascontiguousarray(tensor.detach().cpu().numpy())
        for name, tensor in zip(form.names, form.example, strict=True)
    }
    return prepare_onnx(path, feeds, runtime)


def target(to: str) -> Target:
    """Find a target by name.

    Raises:
        ConfigError: There is no such target.
    """
    if to not in TARGETS:
        close = difflib.get_close_matches(str(to), TARGETS, 1)
        guess = f"; did you mean `{close[0]}`?" if close else f". Choose of {', '.join(TARGETS)}"
        raise ConfigError(f"there is nothing called `{to}` to export to{guess}")
    return TARGETS[to]


def _onnx(model: nn.Module, form: Form, path: Path, dynamic: bool) -> None:
    write_onnx(model, *form.arguments(form.example), path, dynamic=dynamic)


def _openvino(model: nn.Module, form: Form, path: Path, dynamic: bool) -> None:
    between = path.with_suffix(".onnx")
    _onnx(model, form, between, dynamic)
    read = openvino().Core().read_model(str(between))
    # By default it would round all weights to half precision.
    try:
        openvino().save_model(read, str(path), compress_to_fp16=False)
    except RuntimeError as cause:  # a full disk, say
        raise WorkspaceError(
            f"OpenVINO cannot write `{path.name}`: {reason(cause)}. Free some space or choose "
            "another place"
        ) from cause
    del read  # it goes on reading the ONNX file as long as it lives
    for file in path.parent.glob(f"{between.name}*"):
        file.unlink()


def _torch_export(model: nn.Module, form: Form, path: Path, dynamic: bool) -> None:
    args, kwargs = form.arguments(form.example)
    with evaluating(model), torch.no_grad():
        program = captured(opened(model, form), args, kwargs, dynamic=dynamic)
    with quiet():
        torch.export.save(program, path)


TARGETS: Mapping[str, Target] = {
    "onnx": Target((".onnx",), "onnxruntime", _onnx),
    "torch-export": Target((".pt2",), "torch", _torch_export),
    "openvino": Target((".xml",), "openvino", _openvino),
}
"""By the name that `--to` takes."""


def checked_path(path: str | Path, to: str) -> Path:
    """Check that a file may be called so.

    Raises:
        ConfigError: It ends otherwise than such files do, or is a folder.
    """
    path, suffixes = located(path), target(to).suffixes
    if path.suffix not in suffixes:
        raise ConfigError(
            f"a file of `{to}` ends in {' or '.join(suffixes)}, got `{path}`. Call it "
            f"`{path.with_suffix(suffixes[0]).name}`"
        )
    if path.is_dir():
        raise ConfigError(
            f"`{path}` is a folder. Name a file, e.g. `{path / 'model'}{suffixes[0]}`"
        )
    return path
