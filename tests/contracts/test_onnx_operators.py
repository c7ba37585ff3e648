"""Every reading of an ONNX operator against the standard's own test cases, which come with onnx."""

import warnings
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from prunella.model.outputs import tensors_in
from prunella.onnxfiles import checking
from prunella.onnxfiles.network import NUMBERS, OnnxNetwork
from prunella.onnxfiles.opening import DTYPES, open_file
from prunella.onnxfiles.operators import OPERATORS


@cache
def cases():
    """List the cases of one node each, whose operator we read."""
    found = {}
    with warnings.catch_warnings():  # making the cases casts what does not fit
        warnings.simplefilter("ignore")
        listed = load_model_tests(kind="node")
    for case in listed:
        model = case.model or onnx.load(str(Path(case.model_dir) / "model.onnx"))
        nodes = model.graph.node
        if len(nodes) == 1 and nodes[0].op_type in OPERATORS and not nodes[0].domain:
            found[case.name] = case
    return found


def array(item):
    return numpy_helper.to_array(item) if isinstance(item, onnx.TensorProto) else np.asarray(item)


def tensors(case, kind):
    if case.data_sets:
        return [array(item) for item in case.data_sets[0][0 if kind == "input" else 1]]
    folder = Path(case.model_dir) / "test_data_set_0"
    files = sorted(folder.glob(f"{kind}_*.pb"), key=lambda p: int(p.stem.rpartition("_")[2]))
    return [numpy_helper.to_array(onnx.load_tensor(str(file))) for file in files]


def prepared(case, folder):
    """Write the case as files in the wild have it: what are numbers as initializers."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model or onnx.load(str(Path(case.model_dir) / "model.onnx")))
    node, feeds = model.graph.node[0], []
    given = dict(zip([v.name for v in model.graph.input], tensors(case, "input"), strict=True))
    numbers = {node.input[i] for i in NUMBERS.get(node.op_type, ()) if i < len(node.input)}
    for name, value in given.items():
        if name in numbers and value.ndim <= 1:
            model.graph.initializer.append(numpy_helper.from_array(value, name))
        else:
            feeds.append(value)
    path = folder / "case.onnx"
    onnx.save(model, str(path))
    return path, feeds


@pytest.mark.parametrize("name", cases())
def test_a_reading_computes_what_the_standard_says(name, tmp_path):
    case = cases()[name]
    path, feeds = prepared(case, tmp_path)
    graph = onnx.load(str(path)).graph
    kinds = {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
    if not kinds <= set(DTYPES) - {onnx.TensorProto.BFLOAT16} or not feeds:
        pytest.skip("of a type that torch or numpy lack, or nothing goes in")
    network = OnnxNetwork(open_file(path)).eval()
    inputs = [torch.from_numpy(np.array(value)) for value in feeds]
    checking.settle(network, inputs)
    (call,) = network.calls or [(None,)]
    if call[0] is None or network.node(call[0]).unread:
        pytest.skip(f"left to ONNX: {network.node(call[0]).unread if call[0] else 'a constant'}")
    with torch.no_grad():
        made = tensors_in(network(*inputs))
    for mine, wanted in zip(made, tensors(case, "output"), strict=False):
        assert tuple(mine.shape) == wanted.shape
        assert mine.numpy().dtype == wanted.dtype
        np.testing.assert_allclose(mine.numpy(), wanted, rtol=2e-3, atol=1e-5)


def test_most_operators_are_shown_by_a_case():
    shown = Counter(
        (case.model or onnx.load(str(Path(case.model_dir) / "model.onnx"))).graph.node[0].op_type
        for case in cases().values()
    )
    assert set(OPERATORS) - set(shown) <= {"SimplifiedLayerNormalization"}
