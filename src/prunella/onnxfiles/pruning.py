"""An ONNX file made smaller: read, pruned and proven as any module, written, compared."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from prunella.calibration import Calibration
from prunella.certifying import Certificate
from prunella.costs.latency import Latency, Speedup, compare, speedup
from prunella.errors import ConfigError
from prunella.files import located
from prunella.onnxfiles import checking
from prunella.onnxfiles.folding import fold
from prunella.onnxfiles.inputs import Entry, Shapes, calibrate, entries, example
from prunella.onnxfiles.network import OnnxNetwork
from prunella.onnxfiles.opening import OnnxFile, open_file
from prunella.onnxfiles.writing import write
from prunella.plan import Plan
from prunella.pruning import prune
from prunella.pruning.pruning import PruneResult
from prunella.runtimes import Runtime, prepare_onnx

log = logging.getLogger("prunella")

Data = str | Path | Mapping[str, np.ndarray]

SECONDS = 4.0
"""For timing the two files side by side."""


@dataclass(frozen=True)
class FileTimes:
    """How long the original and the written file take, side by side on one sample.

    Attributes:
        runtime: Where, as `Runtime` writes itself.
        original: The runs of the original file.
        written: The runs of the pruned one, between those.
        speedup: By their runs side by side.
    """

    runtime: str
    original: Latency
    written: Latency
    speedup: Speedup

    def __str__(self) -> str:
        """Say it in a line."""
        return f"{self.original} -> {self.written}, {self.speedup} ({self.runtime})"


@dataclass(frozen=True)
class OnnxResult:
    """A pruned ONNX file.

    Attributes:
        path: Where it is; None where nothing was to be written.
        plan_path: Where the plan is.
        plan: What was kept, by names of the file.
        certificate: The proof that the pruned network computes what the masked one does.
        dense_parity: Largest relative difference between ONNX Runtime and torch on the original.
        parity: The same for the written file and the proven network.
        moved: How far outputs moved on the calibration data, as a share of their own size (root
            mean squares); None without such data.
        left_out: Nodes that were not looked at, as nothing can run them or their results have no
            fixed shape. What they read was left as it is.
        summary: A table to print.
        times: How long both files take; None where no runtime was named or nothing was written.
    """

    path: Path | None
    plan_path: Path | None
    plan: Plan
    certificate: Certificate
    dense_parity: float
    parity: float | None
    moved: float | None
    left_out: tuple[str, ...]
    summary: str
    times: FileTimes | None = None


def prune_file(
    path: str | Path,
    output: str | Path | None,
    calibration: Data | None = None,
    *,
    shapes: Shapes | None = None,
    latency: float | str | None = None,
    runtime: Runtime | str | None = None,
    **options: Any,
) -> OnnxResult:
    """Prune an ONNX file; see `prunella.prune_onnx`."""
    if runtime is None and latency is not None:
        runtime = "onnxruntime"
    place = None if runtime is None else _runs_files(Runtime.of(runtime))
    if latency is not None:
        options |= {"latency": latency, "runtime": place}
    path = located(path)
    if output is not None and Path(output).resolve() == path.resolve():
        raise ConfigError(f"`{output}` is the file that is pruned. Name another one to write")
    file = open_file(path)
    asked = entries(file)
    data = None if calibration is None else calibrate(calibration, asked)
    inputs = _first(data, asked) if data is not None else example(asked, shapes)
    file, network = _readable(file, inputs, asked)
    given = _of(network, asked, inputs)
    dense_parity = checking.agree(network, path, given)
    fold(network, given, asked)
    batches = _kept(data, network, asked)
    found = prune(network, given, calibration=batches, form="class", **options)
    pruned = found.model
    assert isinstance(pruned, OnnxNetwork), "the class comes back"
    made: tuple[Path | None, Path | None] = (None, None)
    parity = moved = times = None
    if output is not None:
        made = (Path(output), Path(output).with_suffix(".plan.json"))
        write(file, network, pruned, given, Path(output))
        parity = checking.confirm(pruned, Path(output), given, dense_parity)
        if batches is not None:
            moved = checking.moved(network, path, Path(output), batches)
        Path(output).with_suffix(".plan.json").write_text(found.plan.to_json(), encoding="utf-8")
        if place is not None:
            times = _timed(path, Path(output), asked, inputs, place)
    return OnnxResult(
        *made,
        found.plan,
        found.certificate,
        dense_parity,
        parity,
        moved,
        network.tail,
        _told(network, found),
        times,
    )


def _runs_files(runtime: Runtime) -> Runtime:
    if runtime.name.startswith("torch"):
        raise ConfigError(
            f"the runtime `{runtime}` runs no ONNX file. Use `onnxruntime` or `openvino`, e.g. "
            "`onnxruntime:threads=1`"
        )
    return runtime


def _timed(
    original: Path,
    written: Path,
    asked: list[Entry],
    inputs: tuple[Tensor, ...],
    runtime: Runtime,
) -> FileTimes:
    """Time both files, whole: what was left out of the network is run here too."""
    feeds = {entry.name: x.numpy() for entry, x in zip(asked, inputs, strict=True)}
    with (
        prepare_onnx(original, feeds, runtime) as before,
        prepare_onnx(written, feeds, runtime) as after,
    ):
        times = compare({"original": before, "written": after}, seconds=SECONDS)
    found = speedup(times["original"], times["written"])
    return FileTimes(str(runtime), times["original"], times["written"], found)


def _readable(
    file: OnnxFile, inputs: tuple[Tensor, ...], asked: list[Entry]
) -> tuple[OnnxFile, OnnxNetwork]:
    """Make the network of a file; what nobody can run is left out, with all that follows."""
    loose: set[str] = set()
    while True:
        network = OnnxNetwork(file, loose)
        try:
            checking.settle(network, _of(network, asked, inputs))
        except checking.NobodyRunsError as error:
            log.warning("%s is left out with all that follows: nothing here runs it", error)
            loose.add(error.output)
            file = open_file(file.path)
        else:
            return file, network.eval()


def _first(data: Calibration, asked: list[Entry]) -> tuple[Tensor, ...]:
    """Return one sample, or as many as the graph takes at once."""
    batch = data.batches[0][0]
    return tuple(
        tensor[:1] if entry.shape and isinstance(entry.shape[0], str) else tensor
        for tensor, entry in zip(batch, asked, strict=True)
    )


def _of(network: OnnxNetwork, asked: list[Entry], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the inputs that the network takes; others only what was left out uses."""
    given = {entry.name: tensor for entry, tensor in zip(asked, inputs, strict=True)}
    return tuple(given[name] for name in network.inputs)


def _kept(data: Calibration | None, network: OnnxNetwork, asked: list[Entry]) -> Calibration | None:
    if data is None:
        return None
    return Calibration([(_of(network, asked, args), {}) for args, _ in data.batches])


def _told(network: OnnxNetwork, result: PruneResult) -> str:
    """Say what was done, and which nodes were run as ONNX says or not looked at."""
    lines = [str(result.summary).replace("form: the model's own class\n", "")]
    odd = [(name, network.node(name)) for name, _, _ in network.calls if network.node(name).unread]
    lines += [
        f"run as ONNX says, and frozen: `{node.op}` in `{name}` ({node.unread})"
        for name, node in odd
    ]
    lines += [f"left out: {what}" for what in network.tail]
    return "\n".join(lines)
