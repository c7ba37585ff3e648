"""Nodes that we do not read: run as ONNX says, by the reference evaluator or ONNX Runtime.

To the rest of the library such a node is one operator without a rule, so what it touches is frozen
and named. What it computes is right all the same, so that all around it can be pruned, fitted and
proven.
"""

import base64
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from prunella.onnxfiles.opening import KINDS

_BFLOAT16 = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)


@torch.library.custom_op("prunella_onnx::node", mutates_args=())
def run_node(tensors: Sequence[Tensor], model: str) -> list[Tensor]:
    """Run a model of one node; `model` is its file in base64."""
    return [_tensor(array) for array in _run(model, [_array(tensor) for tensor in tensors])]


@run_node.register_fake
def _(tensors: Sequence[Tensor], model: str) -> list[Tensor]:
    shapes = tuple((tuple(int(n) for n in t.shape), t.dtype) for t in tensors)
    with unset_fake_temporarily():
        known = _shapes(model, shapes)
    return [tensors[0].new_empty(shape, dtype=dtype) for shape, dtype in known]


@lru_cache(maxsize=256)
def _shapes(
    model: str, inputs: tuple[tuple[tuple[int, ...], torch.dtype], ...]
) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Find out by trying what a node makes of inputs of these shapes."""
    zeros = [np.zeros(shape, _array(torch.empty(0, dtype=dtype)).dtype) for shape, dtype in inputs]
    return [(tuple(t.shape), t.dtype) for t in map(_tensor, _run(model, zeros))]


def single(
    node: onnx.NodeProto,
    operands: Sequence[str],
    constants: Sequence[onnx.TensorProto],
    model: onnx.ModelProto,
) -> str:
    """Wrap a node as a model of its own.

    Args:
        node: The node.
        operands: The names it is handed, those of the graphs inside it included; "" for none.
        constants: What it uses beside these.
        model: The model it is from.
    """
    alone = onnx.NodeProto()
    alone.CopyFrom(node)
    graph = onnx.helper.make_graph(
        [alone],
        "node",
        [onnx.helper.make_empty_tensor_value_info(name) for name in operands if name],
        [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name],
        initializer=constants,
    )
    made = onnx.helper.make_model(
        graph, opset_imports=list(model.opset_import), ir_version=model.ir_version
    )
    return base64.b64encode(made.SerializeToString()).decode()


def _run(model: str, arrays: Sequence[np.ndarray]) -> list[Any]:
    evaluator = _evaluator(model)
    if isinstance(evaluator, ReferenceEvaluator):
        feeds = dict(zip(evaluator.input_names, arrays, strict=True))
        return list(evaluator.run(None, feeds))
    if any(array.dtype == np.float64 for array in arrays):
        raise TypeError("ONNX Runtime has this operator in single precision only")
    session = _session(
        model, tuple(KINDS[_tensor(a[:0]).dtype] for a in map(np.atleast_1d, arrays))
    )
    feeds = {entry.name: a for entry, a in zip(session.get_inputs(), arrays, strict=True)}
    return list(session.run(None, feeds))


@lru_cache(maxsize=256)
def _evaluator(model: str) -> ReferenceEvaluator | None:
    try:
        return ReferenceEvaluator(base64.b64decode(model))
    except Exception:  # noqa: BLE001 - it has errors of many types for what it does not know
        return None


@lru_cache(maxsize=256)
def _session(model: str, kinds: tuple[int, ...]) -> onnxruntime.InferenceSession:
    """Let ONNX Runtime load the node, whose inputs it wants to know the types of."""
    proto = onnx.load_from_string(base64.b64decode(model))
    for entry, kind in zip(proto.graph.input, kinds, strict=True):
        entry.type.tensor_type.elem_type = kind
    for entry in proto.graph.output:
        entry.ClearField("type")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _array(tensor: Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(_BFLOAT16)
    return tensor.detach().contiguous().numpy()


def _tensor(array: Any) -> Tensor:
    array = np.asarray(array)
    if array.dtype == _BFLOAT16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array, order="C"))
