"""Write a model for other programs, and see that what they run computes the same."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunella.calibration import Data, calibration
from prunella.errors import ConfigError, ExportError
from prunella.exporting.parity import TOLERANCE, Answer, Array, Parity, allowed, worst
from prunella.exporting.placing import beside, placed
from prunella.exporting.running import Deployed
from prunella.exporting.targets import checked_path, load, target
from prunella.model.containers import emptied
from prunella.model.examples import describe, make
from prunella.model.modes import copied, evaluating
from prunella.model.structure import tensors
from prunella.runtimes import Runtime
from prunella.runtimes.converting import batched, reason, repeated
from prunella.runtimes.flattening import Flat, Form, form_of, output_names, output_of
from prunella.tracing import called_with

log = logging.getLogger("prunella")

OTHER_BATCH = 3
"""How many times the example's batch a dynamic file is tried with as well."""

REAL_BATCHES = 2
"""How many batches of real inputs a file is tried on."""

_HOLDS = (torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class Exported:
    """A file that was found to compute what the model does.

    Attributes:
        path: The file.
        to: What it was exported to.
        batch: The batch it is bound to; None is any.
        why_fixed: Why the batch is fixed though nobody asked for that; "" otherwise.
        parity: Every comparison with the model.
        form: How a call of the model is packed; gives the names of the inputs.
        outputs: The names of the outputs.
        output: The form of the outputs: what holds the tensors of these names.
    """

    path: Path
    to: str
    batch: int | None
    why_fixed: str
    parity: tuple[Parity, ...]
    form: Form
    outputs: tuple[str, ...]
    output: Any

    @property
    def files(self) -> tuple[Path, ...]:
        """The file, and what has to lie beside it."""
        return (self.path, *beside(self.path))

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files)

    def module(self, runtime: Runtime | str | None = None) -> Deployed:
        """Load the file as a module: it takes and gives what the model does.

        Args:
            runtime: What runs it; by default what the file is for.
        """
        where = Runtime(target(self.to).runtime) if runtime is None else Runtime.of(runtime)
        ready = load(self.path, self.form, where)
        return Deployed(ready, self.form, self.outputs, self.output, self.batch)


def export(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...],
    path: str | Path,
    *,
    to: str = "onnx",
    example_kwargs: Mapping[str, Any] | None = None,
    data: Data | None = None,
    dynamic: bool | None = None,
) -> Exported:
    """Write a model as a file for another program, and compare what that computes with the model.

    The file is run in its runtime on random inputs like the example, on another batch size, and
    on real inputs where `data` are given. Only a file that computes the same takes its place.

    Args:
        model: Any module, pruned or not, in float32; left as it is.
        example_inputs: One tensor or the positional arguments, of the shapes that the file shall
            take.
        path: The file, ending in .onnx, .pt2 or .xml. Tensors above 2 GB in all go beside it.
        to: "onnx" (run by ONNX Runtime), "torch-export" (by torch) or "openvino".
        example_kwargs: Keyword arguments of the forward.
        data: Real inputs, as `prune(calibration=)` takes them; a few samples are used.
        dynamic: Whether the batch, the first dimension of all inputs that have it, can be of any
            size. None: where the model allows that; a warning says where it does not.

    Raises:
        ExportError: The model cannot be exported, or the file computes something else.
        ConfigError: There is no such target, or what it needs is not installed.
        WorkspaceError: The file cannot be written; an older one is intact.

    Example:
        >>> exported = export(model, images, "model.onnx")       # doctest: +SKIP
        >>> print(exported.parity[0])                            # doctest: +SKIP
        1.2e-06 on random inputs, batch 1 (tolerance 1e-04)
    """
    target(to)
    path = checked_path(path, to)
    ours = _ours(model)
    given = pytree.tree_map_only(Tensor, Tensor.cpu, called_with(example_inputs, example_kwargs))
    form = form_of(ours, *given)
    output = output_of(ours, form)
    names = tuple(output_names(output))
    real = [] if data is None else _real(form, data, len(form.arguments(form.example)[0]))
    job = _Job(ours, form, names, emptied(output, iter(names)), to, real)
    if dynamic is not None:
        return _written(job, path, dynamic, "")
    try:
        return _written(job, path, True, "")
    except ExportError as cause:
        exported = _written(job, path, False, str(cause))
        log.warning(
            "`%s` is bound to a batch of %d: %s. Export with the batch size that you need",
            path,
            exported.batch,
            cause,
        )
        return exported


@dataclass(frozen=True, eq=False, slots=True)
class _Job:
    """What is exported, whatever the batch: the model, its call, its output, real inputs."""

    model: nn.Module
    form: Form
    names: tuple[str, ...]
    output: Any
    to: str
    real: Sequence[list[Tensor]]


def _written(job: _Job, path: Path, dynamic: bool, why_fixed: str) -> Exported:
    kind = target(job.to)
    with placed(path) as fresh:
        kind.write(job.model, job.form, fresh, dynamic)
        with load(fresh, job.form, Runtime(kind.runtime)) as ready:
            cases = _cases(job.form, job.real, dynamic)
            parity = tuple(_compared(job, ready.on, *case) for case in cases)
    batch = None if dynamic else _batch(job.form.example)
    return Exported(path, job.to, batch, why_fixed, parity, job.form, job.names, job.output)


def _cases(
    form: Form, real: Sequence[list[Tensor]], dynamic: bool
) -> Iterator[tuple[str, list[Tensor]]]:
    """List what a file is tried on: what the inputs are, and they themselves."""
    here = _batch(form.example)
    sizes = [here, OTHER_BATCH * here] if dynamic else [here]
    for seed, size in enumerate(sizes, 1):
        args, kwargs = form.arguments(repeated(form.example, size // here))
        described = describe(args, kwargs)
        if described is None:
            raise ConfigError(
                "the example inputs are of a type that no random ones can be made like. Give "
                "tensors, numbers, lists, tuples or dicts"
            )
        yield "random", list(form.tensors(*make(described, seed)))
    for rows in real:
        size = min(_batch(rows), OTHER_BATCH * here + 1) if dynamic else here
        yield "real", _rows(rows, size)


def _compared(job: _Job, answer: Answer, kind: str, given: list[Tensor]) -> Parity:
    """Compare a file with the model on one batch.

    Raises:
        ExportError: It computes something else, or does not run.
    """
    reference = _answers(job.model, job.form, given)
    try:
        found = answer([np.ascontiguousarray(tensor.numpy()) for tensor in given])
    except Exception as cause:
        raise ExportError(
            f"the exported file does not run on {kind} inputs, batch {_batch(given)} "
            f"({reason(cause)}). A size that follows the inputs is written into the model's code; "
            "compute it from their shapes, or export with the batch that you need"
        ) from cause
    if len(found) != len(reference):
        raise ExportError(
            f"the exported file has {len(found)} outputs, the model {len(reference)} "
            f"({', '.join(job.names)}). Return tensors from `forward`, each once"
        )
    index, error = worst(reference, found)
    tolerance = TOLERANCE
    if error > tolerance:
        tolerance = allowed(reference, _exact(job.model, job.form, given))
    parity = Parity(kind, _batch(given), job.names[index], error, tolerance)
    if not parity.holds:
        raise ExportError(
            "the exported file computes something else than the model: output "
            f"`{job.names[index]}` differs by {parity}. Some operator means something "
            "else there, or the model draws random numbers; export parts of it to find which"
        )
    if not any(np.isfinite(array).any() for array in reference):
        raise ExportError(
            f"the model gives no finite number on {kind} inputs, so nothing can be compared. Give "
            "example inputs of the range that it is for"
        )
    if not any(array.any() for array in reference):
        log.warning(
            "every output of the model is zero on %s inputs: that the file gives the same says "
            "little. Train the model first, or give real inputs",
            kind,
        )
    return parity


@torch.no_grad()
def _answers(model: nn.Module, form: Form, given: Sequence[Tensor]) -> list[Array]:
    with evaluating(model):
        return [output.numpy() for output in Flat(model, form)(*given)]


def _exact(model: nn.Module, form: Form, given: Sequence[Tensor]) -> list[Array] | None:
    """Compute in float64 what the model would without rounding, where its code allows."""
    try:
        return _answers(
            copied(model).double(),
            form,
            [t.double() if t.is_floating_point() else t for t in given],
        )
    except Exception:  # noqa: BLE001  # what a model's own code makes of float64 is its business
        return None


def _ours(model: nn.Module) -> nn.Module:
    """Give the model as it is exported: in evaluation mode on the CPU, sharing what is there."""
    held = tensors(model)
    for name, tensor in held.items():
        if tensor.is_meta:
            raise ConfigError(
                f"`{name}` is on the meta device: there are no weights to export. Load them first"
            )
        if tensor.is_floating_point() and tensor.dtype not in _HOLDS:
            raise ConfigError(
                f"`{name}` is in {str(tensor.dtype).removeprefix('torch.')}; models are exported "
                "in float32, and the runtime chooses its precision. Call `model.float()` first"
            )
    if all(t.device.type == "cpu" for t in held.values()):
        return copied(model, {id(t): t for t in held.values()}).eval()
    return copied(model).cpu().eval()


def _real(form: Form, data: Data, inputs: int) -> list[list[Tensor]]:
    """Take real inputs that have the example's shapes but for the batch."""
    shapes = [t.shape[1:] for t in form.example]
    found = []
    for args, kwargs in calibration(data, inputs).batches:
        given = form.tensors(args, kwargs)
        if [t.shape[1:] for t in given] == shapes:
            found.append([t.detach().cpu() for t in given])
        if len(found) == REAL_BATCHES:
            break
    if not found:
        raise ConfigError(
            f"no batch of the data has the shapes of the example inputs "
            f"({', '.join(str(list(t.shape)) for t in form.example)}). Give an example that is "
            "like the data"
        )
    return found


def _batch(given: Sequence[Tensor]) -> int:
    rows = batched(list(given))
    return rows[0].shape[0] if rows else 1


def _rows(given: list[Tensor], count: int) -> list[Tensor]:
    """Take the first samples; where there are too few, the last one again and again."""
    rows = {id(tensor) for tensor in batched(given)}
    taken = torch.arange(count).clamp(max=_batch(given) - 1)
    return [tensor[taken] if id(tensor) in rows else tensor for tensor in given]
