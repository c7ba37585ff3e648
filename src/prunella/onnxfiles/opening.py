"""Open an ONNX file: its graph without the weights, and the weights without holding them twice."""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, external_data_helper, inliner, numpy_helper
from torch import Tensor

from prunella.errors import ConfigError

DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32, TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16, TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.INT64: torch.int64, TensorProto.INT32: torch.int32, TensorProto.INT16: torch.int16,
    TensorProto.INT8: torch.int8, TensorProto.UINT8: torch.uint8, TensorProto.BOOL: torch.bool,
}  # fmt: skip
"""The types of tensors that we read; what is of another is left to the node that uses it."""

KINDS = {dtype: kind for kind, dtype in DTYPES.items()}
_REMEDY = "Give a file that `onnx.checker.check_model` accepts"


@dataclass(eq=False)
class OnnxFile:
    """An ONNX file in memory.

    Attributes:
        path: Where it is.
        model: Its graph; what `take` has taken is no longer in it.
        external: Whether its weights stand in files beside it.
        opset: Version of the standard operators.
        constants: Its tensors by name: initializers, and what `Constant` nodes hold.
    """

    path: Path
    model: onnx.ModelProto
    external: bool
    opset: int
    constants: dict[str, TensorProto] = field(default_factory=dict)

    def take(self, name: str) -> Tensor:
        """Read a constant, and let go of its bytes in the graph."""
        proto = self.constants[name]
        tensor = read_tensor(proto, self.path.parent)
        for part in ("raw_data", "float_data", "int32_data", "int64_data", "double_data"):
            proto.ClearField(part)
        return tensor


def open_file(path: str | Path) -> OnnxFile:
    """Read an ONNX file, functions of its own written out as the nodes they stand for.

    Raises:
        ConfigError: There is no such file, or it is none that can be read.
    """
    path = Path(path)
    model = _load(path)
    if not model.graph.node:
        raise ConfigError(f"`{path}` is not an ONNX model: no graph with nodes is in it. {_REMEDY}")
    if model.functions:
        model = inliner.inline_local_functions(model)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    opset = opsets.get("", opsets.get("ai.onnx", 0))
    known = onnx.defs.onnx_opset_version()
    if opset > known:
        raise ConfigError(
            f"`{path}` uses opset {opset}, the installed onnx knows {known}. Upgrade it: "
            "`pip install -U onnx onnxruntime`"
        )
    tensors = list(external_data_helper._get_all_tensors(model))
    external = any(t.data_location == TensorProto.EXTERNAL for t in tensors)
    file = OnnxFile(path, model, external, opset)
    file.constants.update((proto.name, proto) for proto in model.graph.initializer)
    for node in model.graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            file.constants[node.output[0]] = _constant(node)
    for proto in file.constants.values():
        _check_external(proto, path)
    return file


def _load(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(str(path), load_external_data=False)
    except FileNotFoundError:
        raise ConfigError(f"there is no file `{path}`. Name an .onnx file") from None
    except Exception as cause:  # protobuf's errors are of a module that has no types
        raise ConfigError(
            f"`{path}` is not an ONNX file ({type(cause).__name__}: {str(cause)[:200]}). {_REMEDY}"
        ) from cause


def _constant(node: onnx.NodeProto) -> TensorProto:
    """Return what a `Constant` node holds, as the node's own tensor."""
    attribute = node.attribute[0]
    if attribute.name.startswith("value_string"):
        return onnx.helper.make_tensor(node.output[0], TensorProto.STRING, [0], [])
    if attribute.name != "value":
        value = onnx.helper.get_attribute_value(attribute)
        dtype = np.float32 if "float" in attribute.name else np.int64
        made = numpy_helper.from_array(np.array(value, dtype), node.output[0])
        attribute.CopyFrom(onnx.helper.make_attribute("value", made))
    own: TensorProto = attribute.t
    return own


def _check_external(proto: TensorProto, path: Path) -> None:
    if proto.data_location == TensorProto.EXTERNAL:
        where, _, length = _place(proto, path.parent)
        if not where.is_file():
            raise ConfigError(
                f"the weights of `{path}` are in `{where}`, which is not there (tensor "
                f"`{proto.name}`). Put the file beside the model"
            )
        if where.stat().st_size < length:
            raise ConfigError(
                f"`{where}` is too short: tensor `{proto.name}` of `{path}` ends at byte {length}. "
                "Copy the file again"
            )


def _place(proto: TensorProto, folder: Path) -> tuple[Path, int, int]:
    """Return the file, the first and the last byte of a tensor that stands outside."""
    info = external_data_helper.ExternalDataInfo(proto)
    where = (folder / info.location).resolve()
    if folder.resolve() not in where.parents:
        raise ConfigError(
            f"tensor `{proto.name}` is said to be in `{info.location}`, outside the model's own "
            "folder; that is not followed. Save the model anew with `onnx.save`"
        )
    start = int(info.offset or 0)
    return where, start, start + (int(info.length) if info.length else _bytes(proto))


def _bytes(proto: TensorProto) -> int:
    return int(np.prod(proto.dims, dtype=np.int64)) * DTYPES[proto.data_type].itemsize


def read_tensor(proto: TensorProto, folder: Path) -> Tensor:
    """Read a tensor; one that stands outside is mapped from its file, not copied.

    Args:
        proto: The tensor, of one of `DTYPES`.
        folder: Where the model is.
    """
    dtype, shape = DTYPES[proto.data_type], tuple(proto.dims)
    if proto.data_location == TensorProto.EXTERNAL:
        where, start, stop = _place(proto, folder)
        if start == stop:
            return torch.empty(shape, dtype=dtype)
        # Private to this process: what is written to it does not reach the file.
        page = start % mmap.ALLOCATIONGRANULARITY
        with where.open("rb") as file:
            held = mmap.mmap(
                file.fileno(), stop - start + page, access=mmap.ACCESS_COPY, offset=start - page
            )
        if page % dtype.itemsize:
            return torch.frombuffer(bytearray(held[page:]), dtype=dtype).reshape(shape)
        return torch.frombuffer(held, dtype=dtype, offset=page).reshape(shape)
    if proto.HasField("raw_data"):
        raw = bytearray(proto.raw_data)
        return torch.frombuffer(raw, dtype=dtype).reshape(shape) if raw else torch.empty(shape)
    array: Any = numpy_helper.to_array(proto)
    if proto.data_type == TensorProto.BFLOAT16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs that a node holds: branches, bodies of loops."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def captured(node: onnx.NodeProto) -> list[str]:
    """List the names that the graphs in a node use from outside."""
    found: dict[str, None] = {}
    for graph in subgraphs(node):
        own = {proto.name for proto in graph.initializer} | {v.name for v in graph.input}
        for inner in graph.node:
            for name in (*inner.input, *captured(inner)):
                if name and name not in own:
                    found[name] = None
            own.update(inner.output)
        found |= {v.name: None for v in graph.output if v.name not in own}
    return list(found)
