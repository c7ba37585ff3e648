"""Judge a model on a split of a task, and say exactly where its data or metric misbehaves."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunella.errors import ConfigError, TaskError
from prunella.model.blame import own_line
from prunella.model.modes import evaluating
from prunella.model.outputs import changed, finite, in_float32
from prunella.model.structure import device_of
from prunella.progress import Progress, or_silent
from prunella.tasks._hashing import absorb
from prunella.tasks._protocol import Split, Task


class NotFiniteError(TaskError):
    """The metric is no finite number of this model: it is wrong, or the model is."""


def evaluate(
    model: nn.Module,
    task: Task,
    split: Split,
    *,
    device: torch.device | str | None = None,
    precision: Literal["no", "bf16"] = "no",
    progress: Progress | None = None,
) -> float:
    """Compute the task's metric of `model` on a whole split.

    The model is borrowed: every module's training flag is put back. It stays on `device`.

    Args:
        model: Any model whose outputs the metric understands.
        task: Whose data and metric.
        split: Which part of the data.
        device: Where to compute; where the model is, if None.
        precision: "bf16" runs the forward passes under autocast; the metric sees float32.
        progress: See `prunella.progress`.

    Raises:
        TaskError: The split is empty, its loader or the metric raises, or that is no number.
        NotFiniteError: The metric is not finite, divides by zero, or raises where the outputs are
            not finite. (A TaskError.)
    """
    where = device_of(model) if device is None else torch.device(device)
    loader = open_split(task, split)
    checks: list[Tensor] = []

    def outputs_of(batch: Any) -> Any:
        with torch.autocast(where.type, torch.bfloat16, enabled=precision == "bf16"):
            outputs = model(*positional(task, batch))
        checks.append(finite(outputs))  # looked at only where something is wrong: it makes one wait
        return in_float32(outputs) if precision == "bf16" else outputs

    with (
        or_silent(progress)(split, size_of(loader)) as advance,
        evaluating(model.to(where)),
        torch.no_grad(),
    ):
        pairs = _outputs(outputs_of, where, batches(loader, f"split `{split}`"), advance)
        try:
            computed = task.metric.compute(pairs)
        except TaskError:
            raise
        except Exception as cause:
            if not all(checks):
                raise NotFiniteError(
                    f"metric `{task.metric.name}` of task `{task.name}` raised "
                    f"{type(cause).__name__} on split `{split}`, and the model's outputs have "
                    f"values that are not finite: {cause}"
                ) from cause
            if isinstance(cause, ArithmeticError):
                raise NotFiniteError(
                    f"metric `{task.metric.name}` of task `{task.name}` raised "
                    f"{type(cause).__name__} on split `{split}`: {cause}. It may divide by what "
                    "there is none of, as a precision does where nothing is found"
                ) from cause
            raise TaskError(
                f"judging the model on split `{split}` failed: {type(cause).__name__}: {cause}"
                f"{own_line(cause)}. Check that the model takes what `inputs` of task "
                f"`{task.name}` makes of a batch, and metric `{task.metric.name}` what the model "
                "returns"
            ) from cause
    value = _number(task, computed)
    if not math.isfinite(value):
        raise NotFiniteError(
            f"metric `{task.metric.name}` of task `{task.name}` is {value} on split `{split}`. "
            "Check the metric for a division by zero and the model's outputs for values that are "
            "not finite"
        )
    return value


def _number(task: Task, computed: Any) -> float:
    try:
        return float(computed)
    except (TypeError, ValueError, RuntimeError) as cause:
        found = getattr(computed, "shape", None)
        what = type(computed).__name__ + ("" if found is None else f" of shape {tuple(found)}")
        raise TaskError(
            f"metric `{task.metric.name}` of task `{task.name}` computed {what}, which is no "
            "number. Return one: of several figures the one that models are judged by"
        ) from cause


def open_split(task: Task, split: Split) -> Iterable[Any]:
    """Ask the task for the batches of a split.

    Raises:
        TaskError: The task's `data` raises.
    """
    try:
        return task.data(split)
    except TaskError:
        raise
    except Exception as cause:
        raise TaskError(
            f"task `{task.name}` cannot open split `{split}`: {type(cause).__name__}: {cause}"
            f"{own_line(cause)}. Repair `data` of the task, or the options that it was given"
        ) from cause


def model_of(task: Task) -> nn.Module:
    """Ask the task for its dense model.

    Raises:
        TaskError: The task's `model` raises, or returns something else.
    """
    try:
        model = task.model()
    except (TaskError, ConfigError):
        raise
    except Exception as cause:
        raise TaskError(
            f"`model` of task `{task.name}` raised {type(cause).__name__}{own_line(cause)}: "
            f"{cause}. Repair it there"
        ) from cause
    if not isinstance(model, nn.Module):
        raise TaskError(
            f"`model` of task `{task.name}` returns the trained model, a torch.nn.Module, got "
            f"{type(model).__name__}. A state dict has to be loaded into one"
        )
    return model


def batches(loader: Iterable[Any], where: str) -> Iterator[Any]:
    """Yield a loader's batches.

    Args:
        loader: Any iterable.
        where: What an error message calls this pass, e.g. "split `valid`".

    Raises:
        TaskError: The loader raises (the batch's index is named, counted from 0) or is empty.
    """
    index = 0
    try:
        for batch in loader:
            yield batch
            index += 1
    except TaskError:
        raise
    except Exception as cause:
        raise TaskError(
            f"the data loader of {where} raised at batch {index}: {type(cause).__name__}: {cause}"
            f"{own_line(cause)}. Repair the loader and give the same command again; what was "
            "finished is kept"
        ) from cause
    if index == 0:
        raise TaskError(
            f"the data loader of {where} gave no batch. It must be iterable again and again: "
            "return a list or a DataLoader, not a generator"
        )


def positional(task: Task, batch: Any) -> tuple[Any, ...]:
    """Take the model's positional inputs out of a batch.

    Raises:
        TaskError: The task's `inputs` raises or does not return a tuple.
    """
    try:
        inputs = task.inputs(batch)
    except Exception as cause:
        raise TaskError(
            f"`inputs` of task `{task.name}` raised {type(cause).__name__}: {cause}, given a batch "
            f"of type {type(batch).__name__}. Say what the model takes of it, as in "
            "`inputs=lambda batch: (batch['images'],)`"
        ) from cause
    if not isinstance(inputs, (tuple, list)):
        raise TaskError(
            f"`inputs` of task `{task.name}` must return a tuple of positional inputs, got "
            f"{type(inputs).__name__}: write `lambda batch: (batch[0],)`"
        )
    return tuple(inputs)


def size_of(loader: Iterable[Any]) -> int | None:
    """Count a loader's batches without reading them; None where it does not know."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):  # of a class that has none, or one that cannot tell
        return None


def fingerprint(task: Task, split: Split, *, progress: Progress | None = None) -> str:
    """Hash all that a split's batches hold, in order: by content, the same in every process."""
    hasher = hashlib.sha256()
    loader = open_split(task, split)
    with or_silent(progress)(f"fingerprint of {split}", size_of(loader)) as advance:
        for batch in batches(loader, f"split `{split}`"):
            absorb(hasher.update, batch)
            advance(1)
    return hasher.hexdigest()


def to_device(value: Any, device: torch.device) -> Any:
    """Move every tensor, and object with `.to`, in containers of any kind to a device."""
    return changed(value, lambda part: part.to(device), lambda part: hasattr(part, "to"))


def _outputs(
    outputs_of: Callable[[Any], Any],
    device: torch.device,
    source: Iterator[Any],
    advance: Callable[[int], None],
) -> Iterator[tuple[Any, Any]]:
    for batch in source:
        moved = to_device(batch, device)
        yield outputs_of(moved), moved
        advance(1)
