"""The pruned model of a run, or a saved one, handed to other programs."""

import logging
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunella import exporting, tasks
from prunella.calibration import Calibration
from prunella.config import Config
from prunella.errors import ConfigError, ExportError, WorkspaceError
from prunella.exporting import Exported, Quantized, Timing
from prunella.exporting.quantizing import MAX_DROP, SAMPLES
from prunella.exporting.targets import target
from prunella.model.examples import Arguments, samples_in
from prunella.pipeline.context import Context, borrowed
from prunella.pipeline.keeping import check_owner
from prunella.pipeline.recording import RECORD
from prunella.plan import Plan
from prunella.progress import Progress
from prunella.record import RunRecord
from prunella.runtimes import Runtime
from prunella.runtimes.converting import repeated
from prunella.storing import load
from prunella.transforming import transform
from prunella.workspace import Workspace

REAL_BATCHES = 2

log = logging.getLogger("prunella")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to export, and how.

    Attributes:
        to: "onnx", "torch-export" or "openvino".
        source: A folder that `prunella.save` wrote, or a plan; None is the run's final model.
        output: The file; None is `export/model` in the work folder, or beside the source.
        batch: Samples in the example inputs: what is timed, and what a fixed batch is.
        dynamic: Whether the batch can be of any size; None: where the model allows that.
        int8: Quantise as well.
        max_drop: How much of the metric int8 may lose.
    """

    to: str = "onnx"
    source: Path | None = None
    output: Path | None = None
    batch: int = 1
    dynamic: bool | None = None
    int8: bool = False
    max_drop: float = MAX_DROP


@dataclass(frozen=True, slots=True)
class HandedOver:
    """What was exported.

    Attributes:
        exported: The pruned model's file.
        quantized: The int8 file, where asked for.
        timing: The dense model, the pruned one and int8 side by side in the file's runtime.
        dense_size: Bytes that a file of the dense model has.
        metric: The name of the task's metric.
        refused: Why there is no int8 file although it was asked for.
    """

    exported: Exported
    quantized: Quantized | None
    timing: Timing
    dense_size: int
    metric: str
    refused: ExportError | None = None


def export(
    config: Config, wanted: Wanted, progress: Progress | None = None, *, typed: str | None = None
) -> HandedOver:
    """Export a pruned model, compare and time it, and quantise it where asked.

    Args:
        config: The settings: the task, and the work folder of its run.
        wanted: What to export, and how.
        progress: See `prunella.progress`.
        typed: The settings as typed, for the commands that messages suggest.

    Raises:
        ExportError: The model cannot be exported, or the file computes something else.
        ConfigError: An option is bad, or there is no model yet.
        WorkspaceError: A file cannot be read or written.
    """
    kind = target(wanted.to)
    if wanted.batch < 1:
        raise ConfigError(
            f"`batch` must be at least 1, got batch={wanted.batch}. It is how many samples are "
            "timed at once; leave it out for one"
        )
    if not wanted.max_drop >= 0:
        raise ConfigError(
            f"`max_drop` must not be negative, got max_drop={wanted.max_drop}. It is how much of "
            f"the metric int8 may lose, e.g. {MAX_DROP}"
        )
    if wanted.int8 and wanted.to != "onnx":
        raise ConfigError(
            f"int8 goes through ONNX Runtime's quantisation, not `{wanted.to}`. Use `--to onnx`"
        )
    context = Context(config, progress, typed)
    with borrowed(context), ExitStack() as stack:
        one = tasks.to_device(context.task.example_inputs, torch.device("cpu"))
        model = _model(context, wanted.source)
        example = repeated(one, wanted.batch)
        path = wanted.output or _place(config, wanted.source) / f"model{kind.suffixes[0]}"
        log.info("exporting %s to %s", context.task.name, path)
        exported = exporting.export(
            model,
            example,
            path,
            to=wanted.to,
            data=_data(context, "valid", REAL_BATCHES),
            dynamic=wanted.dynamic,
        )
        quantized, refused = None, None
        if wanted.int8:
            try:
                quantized = _int8(context, exported, wanted.max_drop)
            except ExportError as cause:  # the float file stands, and is compared all the same
                refused = cause
        # The dense model as a file of the same kind, or the comparison would be one of kinds.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="prunella-"))
        dense = exporting.export(
            context.dense,
            example,
            Path(folder) / exported.path.name,
            to=wanted.to,
            dynamic=exported.batch is None,
        )
        files = {"dense": dense, "pruned": exported}
        if quantized is not None:
            files["pruned, int8"] = quantized.exported
        timing = exporting.timed(
            files,
            example,
            runtime=Runtime(kind.runtime, threads=config.run.threads),
            seconds=config.run.latency_seconds * len(files),
        )
        return HandedOver(
            exported, quantized, timing, dense.size, context.task.metric.name, refused
        )


def settings_of(folder: Path) -> Config:
    """Read the settings that a run left in its work folder.

    Raises:
        WorkspaceError: There was no run in it.
    """
    entry = Workspace(folder).read(RECORD)
    if entry is None:
        raise WorkspaceError(
            f"there is no run in `{folder}`. Name the work folder of one, or a folder that "
            "`prunella.save` wrote with its task: `prunella export FOLDER --task.spec my_task.py`"
        )
    config = Config.model_validate(RunRecord.from_data(entry.payload).config)
    return config.model_copy(update={"run": config.run.model_copy(update={"folder": str(folder)})})


def _model(context: Context, source: Path | None) -> nn.Module:
    if source is None:
        check_owner(context)
        final = context.space.folder / "final"
        if not final.is_dir():
            raise ConfigError(
                f"there is no final model in `{context.space.folder}`. Make it first: "
                f"{context.command('transform')}"
            )
        return context.load("final")
    if source.is_dir():
        return load(source, context.dense).eval()
    try:
        plan = Plan.from_json(source.read_text())
    except OSError as cause:
        raise WorkspaceError(f"`{source}` cannot be read: {cause}. Name a plan") from cause
    return transform(context.dense, plan, context.example).eval()


def _place(config: Config, source: Path | None) -> Path:
    if source is None:
        return config.folder / "export"
    return source / "export" if source.is_dir() else source.parent / "export"


def _data(context: Context, split: tasks.Split, most: int | None) -> Calibration:
    """Take the inputs of some batches of a split."""
    found: list[Arguments] = []
    for index, batch in enumerate(
        tasks.batches(tasks.open_split(context.task, split), f"split `{split}`")
    ):
        args = tasks.positional(context.task, batch)
        _check_example(context.task, args)
        found.append((args, {}))
        samples = sum(samples_in(args) for args, _ in found)
        if index + 1 == most or (most is None and samples >= SAMPLES):
            break
    return Calibration(found)


def _check_example(task: tasks.Task, args: tuple[Any, ...]) -> None:
    given, example = len(args), len(task.example_inputs)
    if given != example:
        raise ConfigError(
            f"`inputs` of task `{task.name}` makes {given} arguments of a batch, and its "
            f"`example_inputs` are {example}; a file has one form of inputs, that of the example. "
            "Write `example_inputs` as `inputs` packs a batch, as in (images[:1], targets[:1])"
        )


def _int8(context: Context, exported: Exported, max_drop: float) -> Quantized:
    log.info("quantising to int8, and judging float and int8 on the valid split")
    return exporting.quantize(
        exported,
        exported.path.with_name(f"{exported.path.stem}-int8.onnx"),
        _data(context, "train", None),
        judge=lambda model: tasks.evaluate(
            model, context.task, "valid", device="cpu", progress=context.progress
        ),
        higher_is_better=context.task.metric.higher_is_better,
        max_drop=max_drop,
    )
