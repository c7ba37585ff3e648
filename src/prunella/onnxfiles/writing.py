"""Put what was cut back into the ONNX file: everything else in it stays as it was.

Names, metadata, opset, dynamic axes and the nodes we do not read are those of the original. What
changes are tensors, the numbers that nodes hold, and the shapes noted for what is in between.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import onnx
import torch
from onnx import NodeProto, TensorProto
from torch import Tensor

from prunella.errors import TransformError, WorkspaceError
from prunella.files import replacing
from prunella.onnxfiles.network import OnnxNetwork, OnnxNode
from prunella.onnxfiles.numbers import Host
from prunella.onnxfiles.opening import KINDS, OnnxFile, captured

log = logging.getLogger("prunella")

_INLINE = 2**31 - 2**24  # bytes of weights that one protobuf holds; it ends at 2 GiB
_ALIGNED = 4096  # so that a reader can map every tensor


def write(
    file: OnnxFile,
    dense: OnnxNetwork,
    pruned: OnnxNetwork,
    inputs: Sequence[Tensor],
    path: Path,
) -> None:
    """Write the pruned model as a file; its weights beside it where they are so in the original.

    Args:
        file: What `dense` was made from; changed on the way.
        dense: The network as it was.
        pruned: The smaller one.
        inputs: What it runs on.
        path: Where to.

    Raises:
        WorkspaceError: It cannot be written; what was there before is intact.
    """
    graph = file.model.graph
    makers = {name: node for node in graph.node for name in node.output}
    for name, value in pruned.filled.items():
        _unfill(file, makers[name], pruned.tensor(name), value)
    hosts: dict[str, Host] = {}
    with torch.no_grad():
        pruned.run(inputs, hosts)
    replaced: dict[str, None] = {}
    own: dict[str, TensorProto] = {}
    for name, operands, outputs in pruned.calls:
        node = makers[next(filter(None, outputs))]
        for index, operand in enumerate(operands):
            if operand in pruned.copies and not _still(pruned, operand):
                replaced[node.input[index]] = None
                own[operand] = _add_own(file, operand, pruned.tensor(operand))
                node.input[index] = own[operand].name
        _edit_attributes(node, dense.node(name), pruned.node(name))
        if node.op_type == "Conv" and operands[1] in pruned.places:
            _edit_kernel(node, pruned.tensor(operands[1]).shape[2:])
        known = {i: hosts.get(operands[i]) for i in pruned.node(name).computed}
        replaced |= dict.fromkeys(
            _edit_constants(file, node, dense.node(name), pruned.node(name), known)
        )
    _drop_unused(graph, replaced)
    _note_shapes(file, pruned)
    held = [(file.constants[n], pruned.tensor(n)) for n in pruned.places if n in file.constants]
    held += [(proto, pruned.tensor(name)) for name, proto in own.items()]
    total = sum(tensor.numel() * tensor.element_size() for _, tensor in held)
    try:
        with ExitStack() as stack:  # both are written before one takes its place
            fresh = stack.enter_context(replacing(path))
            if file.external or total > _INLINE:
                beside = stack.enter_context(replacing(path.with_name(f"{path.name}.data")))
                with beside.open("wb") as stream:
                    for proto, tensor in held:
                        _put_outside(proto, tensor, stream, f"{path.name}.data")
                    _move_outside(file, stream, f"{path.name}.data")
            else:
                for proto, tensor in held:
                    _put_inside(proto, tensor)
            fresh.write_bytes(file.model.SerializeToString())
    except OSError as error:
        raise WorkspaceError(
            f"the model could not be written to `{path}`: {error}. What was there before is "
            "intact; free some space or choose another place"
        ) from error


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _reset(proto: TensorProto, tensor: Tensor) -> None:
    name, doc = proto.name, proto.doc_string
    proto.Clear()
    proto.name, proto.doc_string = name, doc
    proto.data_type = KINDS[tensor.dtype]
    proto.dims.extend(tensor.shape)


def _put_inside(proto: TensorProto, tensor: Tensor) -> None:
    _reset(proto, tensor)
    proto.raw_data = _bytes(tensor)


def _put_outside(proto: TensorProto, tensor: Tensor, stream: BinaryIO, location: str) -> None:
    if tensor.numel() < 256:  # not worth a place of its own
        _put_inside(proto, tensor)
        return
    _reset(proto, tensor)
    _place(proto, _bytes(tensor), stream, location)


def _place(proto: TensorProto, raw: bytes, stream: BinaryIO, location: str) -> None:
    stream.write(b"\0" * (-stream.tell() % _ALIGNED))
    proto.data_location = TensorProto.EXTERNAL
    del proto.external_data[:]
    for key, value in (("location", location), ("offset", stream.tell()), ("length", len(raw))):
        proto.external_data.add(key=key, value=str(value))
    stream.write(raw)


def _move_outside(file: OnnxFile, stream: BinaryIO, location: str) -> None:
    """Take along what stands outside and is no tensor of the network."""
    from onnx import external_data_helper

    for proto in external_data_helper._get_all_tensors(file.model):
        if proto.data_location == TensorProto.EXTERNAL:
            info = external_data_helper.ExternalDataInfo(proto)
            if info.location == location and proto.name in file.constants:
                continue
            with (file.path.parent / info.location).open("rb") as source:
                source.seek(int(info.offset or 0))
                raw = source.read(int(info.length) if info.length else -1)
            _place(proto, raw, stream, location)


# -- what is in the graph


def _unfill(file: OnnxFile, node: NodeProto, tensor: Tensor, value: float) -> None:
    """Let weights that a node made by filling a shape stand in the file, where they need to.

    As long as they are all alike, the shape is enough.
    """
    graph, name = file.model.graph, node.output[0]
    if bool((tensor == value).all()):
        shape = onnx.helper.make_tensor(
            _fresh_name(file, f"{name}_shape"), TensorProto.INT64, [tensor.ndim], tensor.shape
        )
        _add_initializer(file, shape)
        node.input[0] = shape.name
        return
    graph.node.remove(node)
    proto = graph.initializer.add(name=name)
    file.constants[name] = proto
    _declare(file, name, tensor)


def _edit_attributes(node: NodeProto, before: OnnxNode, after: OnnxNode) -> None:
    for attribute in node.attribute:
        old, new = before.get(attribute.name), after.get(attribute.name)
        if old != new:
            attribute.CopyFrom(onnx.helper.make_attribute(attribute.name, new))


def _edit_kernel(node: NodeProto, kernel: Sequence[int]) -> None:
    """Let a kernel that takes all positions of what was cut say its new size."""
    for attribute in node.attribute:
        if attribute.name == "kernel_shape":
            attribute.ints[:] = kernel


def _edit_constants(
    file: OnnxFile,
    node: NodeProto,
    before: OnnxNode,
    after: OnnxNode,
    known: Mapping[int, Host | None],
) -> list[str]:
    """Give a node the numbers it has now; return the names of those it does not use any more.

    `known` are those that the file computes, as it does now that it is smaller.
    """
    replaced = []
    for index, (shape, dtype) in after.kinds.items():
        old, new = (getattr(n.constants, f"input_{index}") for n in (before, after))
        if index in known:
            computed = known[index]
            if computed is None:  # as a table, and nothing that a plan changes
                continue
            old = computed.values if shape else computed.values[0]
        if old == new:
            continue
        if index >= len(node.input):
            raise TransformError(
                f"`{node.op_type}` in `{node.name}` has a graph inside that uses a size from "
                "outside, which would have to change; exclude that node"
            )
        name = node.input[index]
        values = list(new) if shape else [new]
        made = onnx.helper.make_tensor(
            _fresh_name(file, f"{name}_{node.name or node.output[0]}"), KINDS[dtype], shape, values
        )
        _add_initializer(file, made)
        node.input[index] = made.name
        replaced.append(name)
    return replaced


def _still(pruned: OnnxNetwork, copy: str) -> bool:
    """Say whether a node's own vector is still what it is a copy of."""
    mine, first = pruned.tensor(copy), pruned.tensor(pruned.copies[copy])
    return mine.shape == first.shape and bool((mine == first).all())


def _add_own(file: OnnxFile, name: str, tensor: Tensor) -> TensorProto:
    empty = TensorProto(name=_fresh_name(file, name), data_type=KINDS[tensor.dtype])
    empty.dims.extend(tensor.shape)
    _add_initializer(file, empty)
    return file.constants[empty.name]


def _add_initializer(file: OnnxFile, proto: TensorProto) -> None:
    file.model.graph.initializer.append(proto)
    file.constants[proto.name] = file.model.graph.initializer[-1]
    _declare(file, proto.name, None)


def _declare(file: OnnxFile, name: str, tensor: Tensor | None) -> None:
    """List an initializer among the inputs where the file is of a version that asks for it."""
    if file.model.ir_version < 4:
        proto = file.constants[name]
        kind = proto.data_type if tensor is None else KINDS[tensor.dtype]
        dims = list(proto.dims if tensor is None else tensor.shape)
        file.model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, dims))


def _fresh_name(file: OnnxFile, name: str) -> str:
    while name in file.constants:
        name += "_"
    return name


def _drop_unused(graph: onnx.GraphProto, names: dict[str, None]) -> None:
    """Remove constants that nothing reads any more."""
    for node in [n for n in graph.node if n.op_type == "Identity" and n.output[0] in names]:
        if not any(node.output[0] in other.input for other in graph.node):
            names[node.input[0]] = None
            graph.node.remove(node)
    used = {name for node in graph.node for name in (*node.input, *captured(node))}
    used |= {v.name for v in graph.output}
    gone = set(names) - used
    for listed in (graph.initializer, graph.input):
        for entry in [entry for entry in listed if entry.name in gone]:
            listed.remove(entry)
    for node in [n for n in graph.node if n.op_type == "Constant" and n.output[0] in gone]:
        graph.node.remove(node)


def _note_shapes(file: OnnxFile, pruned: OnnxNetwork) -> None:
    """Note the shapes that have changed: of weights among the inputs, and of what is in between."""
    graph = file.model.graph
    for entry in graph.input:
        if entry.name in pruned.places:
            del entry.type.tensor_type.shape.dim[:]
            for n in pruned.tensor(entry.name).shape:
                entry.type.tensor_type.shape.dim.add(dim_value=n)
    if not graph.value_info:
        return
    del graph.value_info[:]
    for name in pruned.places:
        if name in file.constants:
            dims: Any = file.constants[name].dims
            del dims[:]
            dims.extend(pruned.tensor(name).shape)
    try:
        known = onnx.shape_inference.infer_shapes(file.model).graph.value_info
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        log.debug("shapes in between are not noted: %s", error)
        return
    graph.value_info.extend(known)
