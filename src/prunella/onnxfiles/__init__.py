"""ONNX in, ONNX out: pruning for those who have no training code."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunella.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from prunella.onnxfiles.pruning import OnnxResult
    from prunella.runtimes import Runtime

__all__ = ["prune_onnx"]


def prune_onnx(
    path: str | Path,
    output: str | Path | None = "pruned.onnx",
    calibration: "str | Path | Mapping[str, np.ndarray] | None" = None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    latency: float | str | None = None,
    runtime: "Runtime | str | None" = None,
    **options: Any,
) -> "OnnxResult":
    """Prune an ONNX file, and write the smaller one beside its plan.

    The graph is run by torch, so all that `prunella.prune` does for modules is done for it: what
    belongs together is found, a budget is spent where outputs move least, what stays makes up for
    what goes, and the result is proven equal to the masked network. Then the original file is
    edited: names, metadata, opset, dynamic axes and operators that we do not read stay. What was
    written is run in ONNX Runtime and compared with what was proven.

    Args:
        path: The ONNX file.
        output: Where to write the smaller one. The plan goes beside it, as `NAME.plan.json`. None:
            nothing is written, and the result says what would be kept.
        calibration: An .npz file with some hundred inputs, an array for each input of the graph,
            samples along the first dimension; or these arrays by name. No labels. Without it the
            weights alone decide.
        shapes: Shapes of inputs by name, where the graph leaves sizes open that are not the batch
            and there are no calibration data.
        latency: Budget: time of one sample on `runtime`, a share of the original's or a time
            ("8ms"). Networks of many widths are timed first, which takes minutes and is kept.
        runtime: "onnxruntime" (the one for `latency` if none is named) or "openvino", with options:
            "onnxruntime:threads=1". Where one is named, both files are timed there side by side.
        **options: As for `prunella.prune`: a budget (`macs=0.5`, `params=`, `weight_bytes=`,
            `activation_bytes=`) or a `ratio`, `criterion`, `multiple_of`, `exclude` (names of
            nodes), `repair`, `candidates`, `seed`, `progress`.

    Raises:
        ConfigError: The file or the data are not what they should be; packages are missing.
        TraceError: torch and ONNX Runtime make different things of the original file.
        PrunellaError: Each stage raises its own; the original is never written to.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"pruning ONNX files needs the package `{error.name}`. Install it: "
            "`pip install 'prunella[onnx]'`"
        ) from error
    from prunella.onnxfiles.pruning import prune_file

    return prune_file(
        path, output, calibration, shapes=shapes, latency=latency, runtime=runtime, **options
    )
