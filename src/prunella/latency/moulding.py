"""ONNX files of many pruned networks, out of a few exported ones.

Exporting takes seconds, and a latency model wants a hundred networks that differ in nothing but
widths. So the dense network and a few pruned ones are exported, and every number in these files
(sizes of tensors, targets of reshapes, groups of convolutions) is compared with the widths: what
is the same everywhere stays, the rest is a multiple of one width. That is checked on an exported
network which was not used to find it out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto

_SMALL = 64  # integer tensors up to this length are sizes, longer ones are tables


class NoMouldError(Exception):
    """The files differ in more than widths."""


@dataclass(frozen=True, eq=False)
class Linked:
    """Numbers as multiples of widths: `times * length`, or `times` itself where width is -1."""

    width: np.ndarray
    times: np.ndarray

    def at(self, lengths: np.ndarray) -> np.ndarray:
        """Return the numbers for given lengths of all widths."""
        return np.asarray(self.times * np.append(lengths, 1)[self.width])


def link(numbers: np.ndarray, lengths: np.ndarray) -> Linked:
    """Find out which width every number follows.

    Args:
        numbers: In each of several networks: int, `[networks, numbers]`.
        lengths: Of the widths, in the same networks: int, `[networks, widths]`.

    Raises:
        NoMouldError: A number follows none.
    """
    width = np.full(numbers.shape[1], -1)
    times = numbers[0].copy()
    for i in np.flatnonzero((numbers != numbers[0]).any(0)):
        column = numbers[:, i]
        fits = (column[0] * lengths == column[:, None] * lengths[0]).all(0)
        fits &= column[0] % lengths[0] == 0
        if not fits.any():
            raise NoMouldError(f"a number follows no width: {column.tolist()}")
        width[i] = int(fits.argmax())
        times[i] = column[0] // lengths[0, width[i]]
    return Linked(width, times)


@dataclass(frozen=True, eq=False)
class Mould:
    """A network's ONNX file for any plan.

    Attributes:
        dense: The file of the dense network.
        arrays: Its tensors, by name.
        numbers: All numbers in it that may follow widths.
    """

    dense: "ModelProto"
    arrays: dict[str, np.ndarray]
    numbers: Linked

    def cast(self, lengths: np.ndarray) -> "ModelProto":
        """Make the file of the network with given lengths of its widths."""
        import onnx

        numbers = iter(self.numbers.at(lengths).tolist())
        made = onnx.ModelProto()
        made.CopyFrom(self.dense)
        for node in made.graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.INT:
                    attribute.i = next(numbers)
                elif attribute.type == onnx.AttributeProto.INTS:
                    attribute.ints[:] = [next(numbers) for _ in attribute.ints]
        for tensor in made.graph.initializer:
            array = self.arrays[tensor.name]
            shape = tuple(next(numbers) for _ in array.shape)
            if _is_sizes(array):
                array = np.array([next(numbers) for _ in range(array.size)], dtype=array.dtype)
                array = array.reshape(shape)
            else:
                array = np.ascontiguousarray(array[tuple(slice(size) for size in shape)])
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        return made


def mould(files: Sequence["ModelProto"], lengths: np.ndarray) -> Mould:
    """Compare exported networks; the first is the dense one, the last is there for the proof.

    Args:
        files: The networks.
        lengths: Of the widths in each of them: int, `[networks, widths]`.

    Raises:
        NoMouldError: They differ in more than widths.
    """
    skeletons = [_skeleton(file) for file in files]
    if any(found != skeletons[0] for found in skeletons):
        raise NoMouldError("the exported networks have different operators")
    dense = files[0]
    numbers = np.array([list(_numbers(file)) for file in files], dtype=np.int64)
    linked = link(numbers[:-1], lengths[:-1])
    if not np.array_equal(linked.at(lengths[-1]), numbers[-1]):
        raise NoMouldError("a number follows several widths at once")
    arrays = _arrays(dense)
    bare = type(dense)()
    bare.CopyFrom(dense)
    for tensor in bare.graph.initializer:  # the arrays hold what is in them
        tensor.ClearField("raw_data")
    del bare.graph.value_info[:]  # of the dense network
    return Mould(bare, arrays, linked)


def _arrays(file: "ModelProto") -> dict[str, np.ndarray]:
    import onnx

    return {t.name: onnx.numpy_helper.to_array(t) for t in file.graph.initializer}


def _is_sizes(array: np.ndarray) -> bool:
    return array.dtype.kind == "i" and array.size <= _SMALL


def _numbers(file: "ModelProto") -> Iterator[int]:
    """List every number of a file that may follow a width, in the order in which `cast` goes."""
    import onnx

    for node in file.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.INT:
                yield attribute.i
            elif attribute.type == onnx.AttributeProto.INTS:
                yield from attribute.ints
    for tensor in file.graph.initializer:
        yield from tensor.dims
        if tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
            array = onnx.numpy_helper.to_array(tensor)
            if _is_sizes(array):
                yield from (int(number) for number in array.reshape(-1))


def shapes_of(file: "ModelProto") -> dict[str, list[int]]:
    """Return the sizes of a file's tensors, by name."""
    graph = file.graph
    found = {t.name: list(t.dims) for t in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        found[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    return found


def _skeleton(file: "ModelProto") -> list[Any]:
    """List what has to be the same in all files: operators, and how many numbers each holds."""
    nodes = [
        (
            node.op_type,
            tuple(node.input),
            tuple(node.output),
            tuple((a.name, a.type, len(a.ints), _fixed(a)) for a in node.attribute),
        )
        for node in file.graph.node
    ]
    tensors = [(t.name, t.data_type, len(t.dims), _table(t)) for t in file.graph.initializer]
    return [nodes, tensors]


def _fixed(attribute: Any) -> bytes:
    """Return what cannot be cast anew: tensors and graphs among the attributes."""
    import onnx

    kinds = (onnx.AttributeProto.TENSOR, onnx.AttributeProto.GRAPH)
    return bytes(attribute.SerializeToString()) if attribute.type in kinds else b""


def _table(tensor: Any) -> bytes:
    """Return the numbers of an integer tensor that are no sizes: indices to gather, say."""
    import onnx

    array = onnx.numpy_helper.to_array(tensor)
    return array.tobytes() if array.dtype.kind == "i" and not _is_sizes(array) else b""
