"""An ONNX graph as a module: its weights under their names, its nodes run by torch.

The pruned module is of this class too. What a plan changes in it are its tensors and the numbers
that its nodes hold (`attributes.group`, `constants.input_1[2]`), which is what `writing` puts back
into the file.
"""

from collections.abc import Container, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import Tensor, nn

from prunella.errors import ConfigError
from prunella.onnxfiles import foreign
from prunella.onnxfiles.numbers import LONGEST, Host, Operand, as_tensor, compute
from prunella.onnxfiles.opening import DTYPES, OnnxFile, captured, read_tensor
from prunella.onnxfiles.operators import OPERATORS

_STANDARD = ("", "ai.onnx")
NUMBERS = {
    "Clip": {1, 2}, "Expand": {1}, "Pad": {1, 2, 3}, "Reshape": {1}, "Resize": {1, 2, 3},
    "Slice": {1, 2, 3, 4}, "Split": {1}, "Squeeze": {1}, "Tile": {1}, "TopK": {1},
    "Unsqueeze": {1}, "Upsample": {1}, "ConstantOfShape": {0}, "Range": {0, 1, 2}, "OneHot": {1},
    "CumSum": {1}, "Trilu": {1},
}  # fmt: skip
"""Inputs that are numbers, whatever their type: shapes, scales, bounds."""

_WEIGHED = frozenset(
    "Conv ConvTranspose Gemm MatMul PRelu BatchNormalization InstanceNormalization "
    "LayerNormalization GroupNormalization RMSNormalization Einsum".split()
)
# `(channels + 1) / 2` is computed: its 1 and its 2 are no numbers of channels. The 8 of `batch * 8`
# may be.
_ARITHMETIC = frozenset("Add Sub Div Mod Pow Min Max Equal Greater Less And Or Where".split())
_LOOSE = frozenset("NonMaxSuppression NonZero Unique Compress Loop If Scan SequenceMap".split())
"""Operators the shape of whose results depends on the data, or is not that of a tensor."""


class OnnxNode(nn.Module):
    """One node: its attributes, and those of its inputs that are numbers in the file.

    Attributes:
        attributes: By their names in the file.
        constants: `input_0`, `input_1`, ...: an integer, or a tuple.
        literals: Inputs that are numbers too, but never change: what sizes are computed with.
        op: The operator, with its domain where that is not the standard one.
        opset: The version of the standard operators.
        outputs: How many outputs are used.
        computed: Of the numbers, those that the file computes.
        unread: Why the node is run as ONNX says and not by torch; "" where it is not.
    """

    def __init__(self, node: onnx.NodeProto, opset: int, hosts: Mapping[int, Host]) -> None:
        super().__init__()
        standard = node.domain in _STANDARD
        self.op = node.op_type if standard else f"{node.domain}.{node.op_type}"
        self.opset, self.outputs = opset, len([name for name in node.output if name])
        self.attributes = SimpleNamespace(**_attributes(node))
        self.constants = SimpleNamespace(
            **{
                f"input_{i}": tuple(host.values) if host.shape else host.values[0]
                for i, host in hosts.items()
                if node.op_type not in _ARITHMETIC
            }
        )
        computes = node.op_type in _ARITHMETIC
        self.literals = dict(hosts) if computes else {}
        self.kinds = {i: (h.shape, h.dtype) for i, h in hosts.items() if not computes}
        self.computed: set[int] = set()
        self.unread = "" if standard and node.op_type in OPERATORS else "no reading"
        self.alone = ""

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute."""
        return getattr(self.attributes, name, default)

    def forward(self, *operands: Operand) -> Any:
        """Compute the outputs, as numbers where all inputs are."""
        given = [self._constant(i, x) for i, x in enumerate(operands)]
        while given and given[-1] is None:
            given.pop()
        if self.unread:
            tensors = [as_tensor(x) for x in given if x is not None]
            made = foreign.run_node(tensors, self.alone)
            return made if len(made) > 1 else made[0]
        found = compute(self.op, vars(self.attributes), given)
        return OPERATORS[self.op](self, *given) if found is None else found

    def keep(self, index: int, host: Host) -> None:
        """Use these numbers for an input from now on, whatever is handed over."""
        setattr(self.constants, f"input_{index}", host.values if host.shape else host.values[0])
        self.kinds[index] = (host.shape, host.dtype)
        self.computed.add(index)

    def _constant(self, index: int, operand: Operand) -> Operand:
        if index in self.literals:
            return self.literals[index]
        if index not in self.kinds:
            return operand
        value = getattr(self.constants, f"input_{index}")
        shape, dtype = self.kinds[index]
        return Host(value if shape else (value,), shape, dtype)

    def extra_repr(self) -> str:
        """Say which operator it is."""
        return self.op


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            found[attribute.name] = value.decode(errors="replace")
        elif isinstance(value, int | float):
            found[attribute.name] = value
        elif isinstance(value, list) and all(isinstance(v, int | float) for v in value):
            found[attribute.name] = tuple(value)
    if node.op_type == "Cast" and found.get("to") in DTYPES:
        found["dtype"] = DTYPES[found["to"]]
    if node.op_type == "ConstantOfShape" and node.attribute:
        fill = onnx.numpy_helper.to_array(node.attribute[0].t).reshape(-1)[0]
        found["fill"] = (fill.item(), DTYPES[node.attribute[0].t.data_type])
    return found


class OnnxNetwork(nn.Module):
    """The network in an ONNX file, as far as torch can run it.

    Where the shape of a result depends on the data (a choice of boxes), nothing that follows is in
    it: what goes in there is an output of the network, so it stays.

    Attributes:
        inputs: Names of the inputs, in order.
        outputs: Names of what it returns.
        places: Where the tensors of the file are in the module, by their names in the file.
        calls: For every node: its name in the module, the names of its inputs and outputs.
        aliases: What `Identity` nodes make of tensors of the file: of which.
        copies: Vectors that the file has once for several nodes, as each node's own: of what.
        filled: Weights that a node of the file makes by filling a shape: with what.
        tail: The nodes that are left out.
    """

    def __init__(self, file: OnnxFile, loose: Container[str] = ()) -> None:
        super().__init__()
        graph = file.model.graph
        nodes = [node for node in graph.node if node.output[0] not in file.constants]
        within, after = _split(nodes, loose)
        self.tail = tuple(f"`{node.op_type}` in `{_called(node)}`" for node in after)
        self.inputs = [v.name for v in graph.input if v.name not in file.constants]
        self.outputs = _wanted(graph, within, after, file)
        within = _needed(within, self.outputs)
        self.places: dict[str, str] = {}
        self.copies: dict[str, str] = {}
        self.calls: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
        statistics = {
            name
            for node in within
            if node.op_type == "BatchNormalization"
            for name in node.input[3:5]
        }
        self.filled: dict[str, float] = {}
        self.aliases: dict[str, str] = {}
        for node in within:
            value = _fill(node, file)
            same = self.aliases.get(node.input[0], node.input[0]) if node.input else ""
            if node.op_type == "Identity" and same in file.constants:
                self.aliases[node.output[0]] = same
            elif value is None:
                self._add(node, file, statistics)
            else:
                self._hold(node.output[0], value, node.output[0] in statistics)
                self.filled[node.output[0]] = float(value.flatten()[0])
        self._gone = _last_uses(self.calls, self.outputs)

    def _add(self, node: onnx.NodeProto, file: OnnxFile, statistics: set[str]) -> None:
        operands = [self.aliases.get(name, name) for name in (*node.input, *captured(node))]
        hosts: dict[int, Host] = {}
        odd: list[TensorProto] = []
        for i, name in enumerate(operands):
            proto = file.constants.get(name)
            if proto is None:
                continue
            host = None if name in self.places else _host(node, i, proto, file)
            if host is not None:
                hosts[i] = host
            elif name in self.places:
                operands[i] = self._own(name, _called(node), i)
            elif proto.data_type in DTYPES:
                self._hold(name, file.take(name), name in statistics)
            else:
                odd.append(proto)
        module = OnnxNode(node, file.opset, hosts)
        if odd:
            module.unread = "one of its constants is of a type that torch lacks"
            names = {proto.name for proto in odd}
            operands = ["" if name in names else name for name in operands]
        module.alone = foreign.single(node, operands, odd, file.model)
        name = _free_name(self, _called(node))
        _holder(self, name).add_module(name.rpartition(".")[2], module)
        outputs = tuple(node.output)
        self.calls.append((name, tuple(operands), outputs))

    def _hold(self, name: str, tensor: Tensor, fixed: bool, called: str = "") -> None:
        place = _free_name(self, called or name)
        holder, leaf = _holder(self, place), place.rpartition(".")[2]
        if tensor.is_floating_point() and not fixed:
            holder.register_parameter(leaf, nn.Parameter(tensor))
        else:
            holder.register_buffer(leaf, tensor)
        self.places[name] = place

    def _own(self, name: str, node: str, index: int) -> str:
        """Give a node a vector of its own; exporters write equal ones once, tied or not."""
        tensor = self.tensor(name)
        if tensor.ndim != 1 or not tensor.is_floating_point():
            return name
        copy = f"{name}@{node}:{index}"
        self._hold(copy, tensor.detach().clone(), not isinstance(tensor, nn.Parameter), name)
        self.copies[copy] = name
        return copy

    def node(self, name: str) -> OnnxNode:
        """Return a node by its name in the module."""
        found = self.get_submodule(name)
        assert isinstance(found, OnnxNode), "calls name nodes"
        return found

    def tensor(self, name: str) -> Tensor:
        """Return a tensor by its name in the file."""
        found: Any = self
        for part in self.places[name].split("."):
            found = getattr(found, part)
        return found  # type: ignore[no-any-return]

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Compute the output, or all in order where there are several."""
        values = self.run(inputs)
        made = tuple(as_tensor(values[name]) for name in self.outputs)
        return made[0] if len(made) == 1 else made

    def run(
        self,
        inputs: Sequence[Tensor],
        hosts: dict[str, Host] | None = None,
        *,
        keep: bool = False,
    ) -> dict[str, Operand]:
        """Run all nodes.

        Args:
            inputs: What for.
            hosts: Takes the values that are numbers.
            keep: Whether to return what is needed no more, too.
        """
        values: dict[str, Operand] = dict(zip(self.inputs, inputs, strict=True))
        values |= {name: self.tensor(name) for name in self.places}
        for (name, operands, outputs), gone in zip(self.calls, self._gone, strict=True):
            made = self.node(name)(*(values.get(operand) for operand in operands))
            several = isinstance(made, tuple | list)
            kept = [output for output in outputs if output]
            values.update(zip(kept, made if several else (made,), strict=False))
            if hosts is not None and isinstance(made, Host):
                hosts[kept[0]] = made
            for other in () if keep else gone:
                values.pop(other, None)
        return values


def _host(node: onnx.NodeProto, index: int, proto: TensorProto, file: OnnxFile) -> Host | None:
    """Return an input as numbers where that is what it is, None where it is a tensor."""
    count = int(np.prod(proto.dims, dtype=np.int64))
    if proto.data_type not in DTYPES or len(proto.dims) > 1:
        return None
    dtype = DTYPES[proto.data_type]
    named = index in NUMBERS.get(node.op_type, ())
    if not named and (count > LONGEST or not count):
        return None
    if dtype.is_floating_point and not named and (count > 1 or node.op_type in _WEIGHED):
        return None
    values = read_tensor(proto, file.path.parent).reshape(-1).tolist()
    return Host(tuple(values), tuple(proto.dims), dtype)


def _called(node: onnx.NodeProto) -> str:
    return node.name or f"{node.op_type}_{node.output[0]}"


def _free_name(root: nn.Module, name: str) -> str:
    """Return a name as a path in a module: parts that are taken or empty get an underscore."""
    parts = [part or "_" for part in name.split(".")]
    here: nn.Module | None = root
    for i, part in enumerate(parts):
        if here is None:
            break
        last = i == len(parts) - 1
        while hasattr(here, part) and (last or part not in here._modules):
            part += "_"
        parts[i] = part
        here = here._modules.get(part)
    return ".".join(parts)


def _holder(root: nn.Module, name: str) -> nn.Module:
    """Return the module that holds what has this name, made if need be."""
    here = root
    for part in name.split(".")[:-1]:
        if part not in here._modules:
            here.add_module(part, nn.Module())
        found = here._modules[part]
        assert found is not None, "modules are added, not None"
        here = found
    return here


# -- which nodes


def _split(
    nodes: Sequence[onnx.NodeProto], loose: Container[str]
) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    """Take off the nodes whose results have no shape of their own, and all that follows."""
    within: list[onnx.NodeProto] = []
    tail: list[onnx.NodeProto] = []
    after: set[str] = set()
    for node in nodes:
        odd = node.op_type in _LOOSE or node.op_type.startswith(("Sequence", "Optional", "String"))
        if odd or node.output[0] in loose or after & {*node.input, *captured(node)}:
            after.update(filter(None, node.output))
            tail.append(node)
        else:
            within.append(node)
    return within, tail


def _wanted(
    graph: onnx.GraphProto,
    within: Sequence[onnx.NodeProto],
    tail: Sequence[onnx.NodeProto],
    file: OnnxFile,
) -> list[str]:
    """List what the network returns: the outputs it makes, and what the tail reads of it."""
    made = {name for node in within for name in node.output}
    found = {v.name: None for v in graph.output if v.name in made}
    for node in tail:
        found |= {n: None for n in (*node.input, *captured(node)) if n in made}
    if not found:
        first = f"`{tail[0].op_type}` in `{_called(tail[0])}`" if tail else "none at all"
        raise ConfigError(
            f"nothing in `{file.path}` can be pruned: its outputs all depend on operators that we "
            f"cannot run, or whose results have no fixed shape: {first}"
        )
    return list(found)


def _fill(node: onnx.NodeProto, file: OnnxFile) -> Tensor | None:
    """Return the weights that a node makes out of a constant shape; None where it does not."""
    proto = file.constants.get(node.input[0]) if node.input else None
    if node.op_type != "ConstantOfShape" or proto is None:
        return None
    value, dtype = _attributes(node).get("fill", (0.0, torch.float32))
    shape = read_tensor(proto, file.path.parent).tolist()
    if not dtype.is_floating_point or len(shape) == 0:
        return None
    return torch.full(shape, value, dtype=dtype)


def _needed(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> list[onnx.NodeProto]:
    """Leave out nodes that no output depends on."""
    wanted, found = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted.update((*node.input, *captured(node)))
            found.append(node)
    return found[::-1]


def _last_uses(
    calls: Sequence[tuple[str, tuple[str, ...], tuple[str, ...]]], outputs: Sequence[str]
) -> list[tuple[str, ...]]:
    last: dict[str, int] = {}
    for index, (_, operands, made) in enumerate(calls):
        last.update(dict.fromkeys((*operands, *made), index))
    gone: list[list[str]] = [[] for _ in calls]
    for name, index in last.items():
        if name not in outputs:
            gone[index].append(name)
    return [tuple(names) for names in gone]
