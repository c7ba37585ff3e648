"""Hand a pruned network on to int8: ONNX Runtime's static quantisation, judged before it counts."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from prunella.calibration import Calibration, Data, calibration, thinned
from prunella.errors import ConfigError, ExportError
from prunella.exporting.exporting import Exported
from prunella.exporting.placing import placed
from prunella.exporting.running import parts
from prunella.exporting.targets import checked_path
from prunella.model.outputs import tensors_in
from prunella.plan import check_kind
from prunella.runtimes.converting import reason
from prunella.runtimes.prepared import Array
from prunella.runtimes.runtime import required

SAMPLES = 512
"""How many samples the ranges of activations are read from."""

MAX_DROP = 0.01
"""How much of the metric int8 may lose, by default."""

Judge = Callable[[nn.Module], float]
"""How good a model is; it is called with float and int8, and need not be told which is which."""


@dataclass(frozen=True, eq=False, slots=True)
class Quantized:
    """An int8 file that was found to be as good as the float one, but for what was granted.

    Attributes:
        exported: The file.
        before: What the judge said of the float file.
        after: What it said of this one.
        max_drop: How much worse it might have been.
        samples: How many samples the ranges were read from.
    """

    exported: Exported
    before: float
    after: float
    max_drop: float
    samples: int


def quantize(
    exported: Exported,
    path: str | Path,
    data: Data,
    *,
    judge: Judge | None = None,
    higher_is_better: bool = True,
    max_drop: float = MAX_DROP,
) -> Quantized:
    """Quantise an ONNX file to int8, weights per channel, activations by their ranges on data.

    Args:
        exported: The float file, made by `export(to="onnx")`.
        path: The int8 file.
        data: Real inputs, as `prune(calibration=)` takes them; up to 512 samples are used.
        judge: How good a model is, on data that are not these: both files are judged, as modules
            that run in ONNX Runtime. None: how far int8 agrees with float on the data: the share
            of samples of the same class, or, of other outputs, 1 less the relative error.
        higher_is_better: The judge's direction.
        max_drop: How much worse than float int8 may be, in the judge's units.

    Raises:
        ExportError: int8 is worse than that, or the network cannot be quantised. No file is left.
        ConfigError: The file is not ONNX, or the data do not fit it.
    """
    check_kind(exported, Exported)
    if exported.to != "onnx":
        raise ConfigError(
            f"int8 is for ONNX Runtime, and `{exported.path}` is of {exported.to}. Export to onnx"
        )
    if not max_drop >= 0:
        raise ConfigError(f"`max_drop` must not be negative, got {max_drop=}")
    path = checked_path(path, "onnx")
    form = exported.form
    given = thinned(calibration(data, len(form.arguments(form.example)[0])), SAMPLES)
    reader = _Reader(exported, given)
    with placed(path) as fresh, ExitStack() as stack:
        _quantized(exported.path, fresh, reader)
        small = replace(exported, path=fresh, parity=())
        models = [each.module() for each in (exported, small)]
        for model in models:
            stack.callback(model.close)
        before, after = (
            (judge(models[0]), judge(models[1]))
            if judge is not None
            else (1.0, _agreement(models[0], models[1], given))
        )
        drop = before - after if higher_is_better else after - before
        if not drop <= max_drop:
            raise ExportError(
                f"int8 is worse by {drop:.4g} ({before:.4g} in float, {after:.4g} in int8), and "
                f"at most {max_drop:g} was granted; the float file is as it was. Give more or "
                "other calibration data, or grant more with `max_drop` (`--max-drop`)"
            )
    return Quantized(replace(small, path=path), before, after, max_drop, reader.samples)


class _Reader:
    """Calibration data as ONNX Runtime asks for them, in batches that the file takes."""

    def __init__(self, exported: Exported, data: Calibration) -> None:
        self._names = exported.form.names
        batches = [exported.form.tensors(args, kwargs) for args, kwargs in data.batches]
        self.samples = sum(batch[0].shape[0] if batch[0].dim() else 1 for batch in batches)
        self._rest = (part for batch in batches for part in parts(batch, exported.batch))

    def get_next(self) -> Mapping[str, Array] | None:
        """Give the next batch, None at the end."""
        part = next(self._rest, None)
        return None if part is None else dict(zip(self._names, part, strict=True))


def _quantized(source: Path, path: Path, reader: _Reader) -> None:
    required("onnxruntime", "onnx")
    tools = required("onnxruntime.quantization", "onnx")
    prepared = required("onnxruntime.quantization.shape_inference", "onnx").quant_pre_process
    folded = path.with_name("folded.onnx")
    with _silent():
        try:
            # Batch norms go into convolutions first. Shapes were inferred by the exporter.
            prepared(str(source), str(folded), skip_symbolic_shape=True)
            tools.quantize_static(
                str(folded),
                str(path),
                reader,
                quant_format=tools.QuantFormat.QDQ,
                activation_type=tools.QuantType.QUInt8,
                weight_type=tools.QuantType.QInt8,
                per_channel=True,
            )
        except OSError:
            raise
        except Exception as cause:
            raise ExportError(
                f"ONNX Runtime cannot quantise `{source}` ({reason(cause)}). The float file is as "
                "it was; use that"
            ) from cause
        finally:
            for file in path.parent.glob(f"{folded.name}*"):
                file.unlink()


@contextmanager
def _silent() -> Iterator[None]:
    """Silence what the quantiser tells the root logger about each step."""
    root = logging.getLogger()
    before = root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


@torch.no_grad()
def _agreement(dense: nn.Module, small: nn.Module, data: Calibration) -> float:
    shares: list[Tensor] = []
    for args, kwargs in data.batches:
        pair = [list(tensors_in(model(*args, **kwargs))) for model in (dense, small)]
        shares += [_agree(one, other) for one, other in zip(*pair, strict=True)]
    return float(torch.stack(shares).mean())


def _agree(one: Tensor, other: Tensor) -> Tensor:
    if not one.is_floating_point():
        return (one == other).double().mean()
    if one.dim() == 2 and one.shape[1] > 1:  # [samples, classes]
        return (one.argmax(1) == other.argmax(1)).double().mean()
    scale = one.double().square().mean().clamp_min(1e-30)
    return 1 - ((one.double() - other.double()).square().mean() / scale).sqrt()
