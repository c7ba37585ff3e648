"""Small ONNX models, written as text, with random weights."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper, parser


def model(text: str, shapes: Mapping[str, tuple[int, ...]], opset: int = 17) -> onnx.ModelProto:
    """Read a graph, with normal weights of these shapes; names that end in `var` are positive.

    `__` in the text stands for a dot.
    """
    generator = np.random.default_rng(0)
    made = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}, "odd" : 1, '
                              f'"com.microsoft" : 1]> {text}')  # fmt: skip
    for node in made.graph.node:  # the text allows no dots in names
        node.input[:] = [name.replace("__", ".") for name in node.input]
    for name, shape in shapes.items():
        fan_in = max(int(np.prod(shape[1:])), 1)
        values = generator.standard_normal(shape) * (1.5 / fan_in) ** 0.5
        values = np.abs(values) + 0.5 if name.endswith("var") else values
        made.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return made


CONVS = """
agraph (float[batch, 3, 12, 12] image) => (float[batch, 5] scores) {
    [stem] a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, stem__weight, stem__bias)
    [norm] b = BatchNormalization (a, norm__weight, norm__bias, norm__mean, norm__var)
    [act] c = Relu (b)
    [deep] d = Conv <group = 16, kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (c, deep__weight)
    [grouped] e = Conv <group = 4, kernel_shape = [1, 1]> (d, grouped__weight, grouped__bias)
    [sum] f = Add (e, c)
    [up] g = ConvTranspose <kernel_shape = [2, 2], strides = [2, 2]> (f, up__weight, up__bias)
    [pool] h = GlobalAveragePool (g)
    [flat] i = Flatten (h)
    [hidden] j = MatMul (i, hidden__weight)
    [swish] k = HardSwish (j)
    [head] scores = Gemm <transB = 1> (k, head__weight, head__bias)
}
"""
CONVS_SHAPES = {
    "stem.weight": (16, 3, 3, 3), "stem.bias": (16,), "norm.weight": (16,), "norm.bias": (16,),
    "norm.mean": (16,), "norm.var": (16,), "deep.weight": (16, 1, 3, 3),
    "grouped.weight": (16, 4, 1, 1), "grouped.bias": (16,), "up.weight": (16, 12, 2, 2),
    "up.bias": (12,), "hidden.weight": (12, 24), "head.weight": (5, 24), "head.bias": (5,),
}  # fmt: skip


def convs() -> onnx.ModelProto:
    """Return a network of convolutions of every kind, with a residual sum."""
    return model(CONVS, CONVS_SHAPES)


def saved(made: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    """Write a model."""
    path = folder / name
    onnx.save(made, str(path))
    return path


def run(path: Path, **feeds: np.ndarray) -> list[np.ndarray]:
    """Run a file in ONNX Runtime, which shares nothing with what wrote it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, feeds)
    return found


def weights(path: Path) -> dict[str, np.ndarray]:
    """Return the initializers of a file by name."""
    read = onnx.load(str(path))
    return {proto.name: numpy_helper.to_array(proto) for proto in read.graph.initializer}
