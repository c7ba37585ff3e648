"""How long every kernel of ONNX Runtime takes, told by the nodes of the file it came from.

ONNX Runtime fuses nodes, and moves tensors into blocked layouts where widths allow; what becomes of
a node depends on the widths. So nodes that may become one kernel are one *region* from the start:
an operator with weights and the element-wise ones behind it.
"""

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from prunella.latency.whole import low, repeat
from prunella.runtimes import Runtime
from prunella.runtimes.in_onnxruntime import provider_of
from prunella.runtimes.runtime import required

if TYPE_CHECKING:
    from onnx import ModelProto

_LIGHT = frozenset(
    "Relu Clip Sigmoid HardSigmoid HardSwish Swish LeakyRelu Elu Selu Gelu Tanh Erf Softplus Mish "
    "QuickGelu Add Sub Mul Div Pow Sqrt BatchNormalization Identity Cast PRelu Dropout".split()
)
"""Operators that runtimes fuse into what is before them."""

_INWARD = "ReorderInput"  # serves what comes after it
_BLOCKED = "_nchwc"  # what ONNX Runtime adds to the name of a tensor to name a blocked kernel
_FUSION = re.compile(r"(/[^/]*Fusion[^/]*/?)+$")  # ... to that of a node to name what it fused


@dataclass(frozen=True, eq=False)
class Regions:
    """Which region every node belongs to, by the names that kernels may have.

    Attributes:
        of: The region of a node's name, and of the tensors it makes.
        tensors: Every region's tensors.
        op: Every region's first operator.
    """

    of: Mapping[str, str]
    tensors: Mapping[str, tuple[str, ...]]
    op: Mapping[str, str]


def regions(file: "ModelProto") -> Regions:
    """Sort the nodes of a file into regions, each called after its first node."""
    of: dict[str, str] = {}
    op: dict[str, str] = {}
    tensors: dict[str, list[str]] = defaultdict(list)
    made: dict[str, int] = {}
    for i, node in enumerate(file.graph.node):
        before = [name for name in node.input if name in made]
        if node.op_type in _LIGHT and before:
            region = of[max(before, key=made.__getitem__)]  # what was computed last
        else:
            region = node.name
            op[region] = node.op_type
        of[node.name] = region
        for name in node.output:
            of[name], made[name] = region, i
        tensors[region] += [name for name in (*node.input, *node.output) if name]
    return Regions(of, {name: tuple(dict.fromkeys(t)) for name, t in tensors.items()}, op)


@dataclass(frozen=True, slots=True)
class _Kernel:
    name: str
    op: str
    ins: tuple[Any, ...]
    outs: tuple[Any, ...]


def time_kernels(
    file: "ModelProto",
    feeds: Mapping[str, NDArray[Any]],
    runtime: Runtime,
    known: Regions,
) -> dict[str, float]:
    """Return how many milliseconds each region takes; "" is what belongs to none.

    Args:
        file: The network.
        feeds: Its inputs.
        runtime: ONNX Runtime, with its options.
        known: The regions of the dense network.
    """
    ort = required("onnxruntime", "onnx")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if runtime.threads is not None:
        options.intra_op_num_threads = runtime.threads
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        providers = [provider_of(runtime)]
        session = ort.InferenceSession(file.SerializeToString(), options, providers=providers)
        names = {i.name for i in session.get_inputs()}
        given = {name: array for name, array in feeds.items() if name in names}
        repeat(lambda: session.run(None, given))
        events = json.loads(Path(session.end_profiling()).read_text())
    return _by_region(events, known)


def _by_region(events: Sequence[Mapping[str, Any]], known: Regions) -> dict[str, float]:
    times: dict[_Kernel, list[float]] = defaultdict(list)
    for event in events:
        name = event["name"].removesuffix("_kernel_time")
        if event.get("cat") == "Node" and name != event["name"]:
            args = event["args"]
            ins, outs = _shapes(args["input_type_shape"]), _shapes(args["output_type_shape"])
            kernel = _Kernel(name, args["op_name"], ins, outs)
            times[kernel].append(event["dur"] / 1e3)
    found: dict[str, float] = defaultdict(float)
    for kernel, region in _assigned(list(times), known):
        found[region] += low(times[kernel][1:])
    return dict(found)


def _shapes(listed: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
    return tuple(tuple(shape) for entry in listed for shape in entry.values())


def _assigned(kernels: Sequence[_Kernel], known: Regions) -> list[tuple[_Kernel, str]]:
    """Give every kernel its region.

    Names survive most fusions. What ONNX Runtime puts in under a name of its own (a change of
    layout, a reshape) goes with the kernel it serves: the last one before that makes what it reads.
    """
    own = [_named(kernel.name, known) for kernel in kernels]
    for i, kernel in enumerate(kernels):
        if own[i] is None:
            before, after = range(i - 1, -1, -1), range(i + 1, len(kernels))
            inward = kernel.op.startswith(_INWARD)
            reads = (j for j in before if {*kernel.ins} & {*kernels[j].outs})
            feeds = (j for j in after if {*kernel.outs} & {*kernels[j].ins})
            near = (*feeds, *reads, *before) if inward else (*reads, *feeds, *before)
            own[i] = next((own[j] for j in near if own[j] is not None), None)
    return [(kernel, region or "") for kernel, region in zip(kernels, own, strict=True)]


def _named(name: str, known: Regions) -> str | None:
    for found in (name, name.removesuffix(_BLOCKED), _FUSION.sub("", name)):
        if found in known.of:
            return known.of[found]
    return None
