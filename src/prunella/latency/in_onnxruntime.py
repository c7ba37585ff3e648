"""A bench for what runs ONNX files, which are cast instead of exported.

Of ONNX Runtime the time of every kernel is known, of others that of the whole network.
"""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prunella.latency.kernels import regions, time_kernels
from prunella.latency.measured import Place, Sample
from prunella.latency.moulding import Linked, Mould, NoMouldError, link, mould, shapes_of
from prunella.latency.subject import Subject
from prunella.latency.whole import time_whole
from prunella.plan import Plan
from prunella.runtimes import Runtime, prepare_onnx
from prunella.runtimes.converting import write_onnx
from prunella.runtimes.flattening import form_of

if TYPE_CHECKING:
    from onnx import ModelProto

log = logging.getLogger("prunella")


class OnnxBench:
    """Times networks in ONNX Runtime, kernel by kernel, or as wholes in OpenVINO.

    Args:
        subject: The network.
        runtime: ONNX Runtime or OpenVINO, with its options.
    """

    def __init__(self, subject: Subject, runtime: Runtime) -> None:
        self._subject, self._runtime = subject, runtime
        plans = subject.telling()
        files = [self._export(plan) for plan in plans]
        known = np.array([subject.lengths(plan) for plan in plans])
        self._regions = regions(files[0])
        self._mould: Mould | None = None
        try:
            self._mould = mould(files, known)
        except NoMouldError as reason:
            log.info("every sample is exported, which takes longer: %s", reason)
        self._shapes = _linked([shapes_of(file) for file in files], known)

    @cached_property
    def places(self) -> Mapping[str, Place]:
        """The regions by name; none where nobody can look inside."""
        found: dict[str, Place] = {}
        if self._runtime.name != "onnxruntime":
            return found
        for name, tensors in self._regions.tensors.items():
            sizes = [self._shapes[t].width for t in tensors if t in self._shapes]
            widths = {int(w) for size in sizes for w in size if w >= 0}
            twice = {w for w in widths if any((size == w).sum() > 1 for size in sizes)}
            found[name] = Place(self._regions.op[name], tuple(sorted(widths)), tuple(sorted(twice)))
        return found

    def time(self, plan: Plan | None) -> Sample:
        """Time the network of a plan, or the dense one."""
        long = self._subject.lengths(plan)
        file = self._export(plan) if self._mould is None else self._mould.cast(long)
        form = form_of(self._subject.model, *self._subject.inputs)
        feeds = {
            name: tensor.detach().cpu().numpy()
            for name, tensor in zip(form.names, form.example, strict=True)
        }
        times: dict[str, float] = {}
        if self._runtime.name == "onnxruntime":
            times = time_kernels(file, feeds, self._runtime, self._regions)
        with prepare_onnx(file, feeds, self._runtime) as ready:
            return Sample(long, times, time_whole(ready))

    def _export(self, plan: Plan | None) -> "ModelProto":
        import onnx

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            write_onnx(self._subject.pruned(plan), *self._subject.inputs, path)
            return onnx.load(path)


def _linked(shapes: Sequence[Mapping[str, Sequence[int]]], known: np.ndarray) -> dict[str, Linked]:
    """Find out which widths the sizes of tensors follow; of some it cannot be told."""
    found = {}
    for name, size in shapes[0].items():
        sizes = [other.get(name, ()) for other in shapes]
        if all(len(other) == len(size) for other in sizes):
            try:
                found[name] = link(np.array(sizes, dtype=np.int64), known)
            except NoMouldError:
                continue
    return found
