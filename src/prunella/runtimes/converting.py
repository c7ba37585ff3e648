"""From torch to an ONNX file, by torch's own exporter."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunella.errors import ExportError
from prunella.model.modes import evaluating
from prunella.runtimes.flattening import Flat, form_of, output_names, output_of
from prunella.runtimes.runtime import required
from prunella.tracing.capturing import masks_unasked
from prunella.tracing.constants import Constants

BATCH = "batch"
"""The name of the dynamic dimension in a file."""


def write_onnx(
    model: nn.Module,
    args: Tensor | tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    path: Path,
    *,
    dynamic: bool = False,
) -> None:
    """Write a model as an ONNX file; tensors go beside it, into `<name>.data`, above 2 GB.

    Args:
        model: Any module that `torch.export` captures; comes back in the mode it came in.
        args: One tensor or the positional arguments.
        kwargs: Keyword arguments.
        path: The file.
        dynamic: Let the batch, the first dimension of the inputs, be of any size. Inputs whose
            first dimension is not that of the first one keep their shape.

    Raises:
        ExportError: The model cannot be captured, or has an operator that ONNX cannot express.
        ConfigError: The extra `onnx` is not installed.
    """
    required("onnx", "onnx")
    required("onnxscript", "onnx")
    with evaluating(model), torch.no_grad():
        form = form_of(model, args, kwargs)
        outputs = output_names(output_of(model, form))
        program = captured(Flat(model, form), form.example, {}, dynamic=dynamic)
        with quiet():
            try:
                made = torch.onnx.export(
                    program,
                    input_names=list(form.names),
                    output_names=outputs,
                    dynamo=True,
                    verbose=False,
                )
            except Exception as cause:
                raise ExportError(
                    f"`{type(model).__name__}` cannot be written as ONNX: {reason(cause)}. "
                    "Export it with `--to torch-export`, or write the operator in others"
                ) from cause
            assert made is not None, "torch.onnx.export with dynamo=True returns a program"
            made.save(path)


def captured(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, dynamic: bool
) -> torch.export.ExportedProgram:
    """Capture a model in evaluation mode with `torch.export`.

    Args:
        model: In evaluation mode.
        args: Positional arguments.
        kwargs: Keyword arguments.
        dynamic: Let the batch be of any size.

    Raises:
        ExportError: torch cannot capture it, or not with a dynamic batch.
    """
    shapes = None
    if dynamic:
        args, kwargs = repeated((args, kwargs), 2)
        given = torch.export.ShapesCollection()
        batch = torch.export.Dim(BATCH)
        for tensor in batched((args, kwargs)):
            given[tensor] = {0: batch}
        shapes = given
    with quiet(), Constants(), masks_unasked():
        try:
            return torch.export.export(
                model, args, kwargs or None, dynamic_shapes=shapes, strict=False
            )
        except Exception as cause:
            of = "with a dynamic batch " if dynamic else ""
            raise ExportError(
                f"torch.export cannot capture the model {of}({reason(cause)}). Its `forward` may "
                "not branch on the values of its inputs, nor write sizes down that follow them"
            ) from cause


def batched(inputs: Any) -> list[Tensor]:
    """List the tensors whose first dimension is the batch: as long as that of the first tensor."""
    found = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    arrays = [tensor for tensor in found if tensor.dim()]
    return [tensor for tensor in arrays if tensor.shape[0] == arrays[0].shape[0]]


def repeated(inputs: Any, times: int) -> Any:
    """Repeat the batch: from one row two, say, since torch takes a size of one for a constant."""
    rows = {id(tensor) for tensor in batched(inputs)}
    return pytree.tree_map_only(
        Tensor, lambda t: t.repeat(times, *[1] * (t.dim() - 1)) if id(t) in rows else t, inputs
    )


def reason(error: BaseException) -> str:
    """Give the first line that says something of an error that may fill pages.

    The exporter wraps what went wrong in errors that tell how to report it: the cause says more.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what the exporters of torch say about themselves: deprecations, optional packages."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        # Folding constants computes what a mask is made of: the logarithm of zero, say.
        warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"onnx.*")
        warnings.filterwarnings("ignore", message=".*[Dd]ynamic_shapes.*|.*dynamic_axes.*")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
