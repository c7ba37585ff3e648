"""Turn what the framework captured into one flat graph of operators.

The framework wraps what runs without gradients, or under autocast, into graphs of their own, called
by operators of higher order. Here their bodies are put in place of the call, so that whoever reads
the graph sees plain operators only.
"""

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import HigherOrderOperator, OpOverload

_SWITCHES = (
    torch._C._set_grad_enabled,
    torch.amp.autocast_mode._enter_autocast,
    torch.amp.autocast_mode._exit_autocast,
)
_CHECKS = {
    f"aten.{name}"
    for name in """
    _assert_tensor_metadata.default _assert_scalar.default _assert_async.default _assert_async.msg
    sym_constrain_range.default sym_constrain_range_for_size.default
    """.split()
}


def operator_name(target: Any) -> str:
    """Name what a node calls: "aten.relu.default", or a function's "module.name"."""
    if isinstance(target, OpOverload | HigherOrderOperator):
        return str(target)
    return f"{target.__module__}.{target.__qualname__}"


def inlined(module: fx.GraphModule) -> tuple[fx.Graph, dict[str, Tensor]]:
    """Return a captured graph without graphs inside it, and without checks and switches.

    Nodes keep their `meta`; those that ran with gradients off get `meta["grad"] = False`. Of two
    branches both stay, and a `where` chooses between what they make.

    Returns:
        The graph, and the values of the placeholders that were added, one for each constant.
    """
    flat = _Flat()
    found = {
        node: flat.copy(node, {}, grad=True)
        for node in module.graph.nodes
        if node.op == "placeholder"
    }
    flat.graph.output(flat.paste(module, found, grad=True))
    _drop_sizes(flat.graph)
    return flat.graph, flat.constants


_NUMBERS = (torch.SymInt, torch.SymFloat, torch.SymBool)


def _drop_sizes(graph: fx.Graph) -> None:
    """Drop sizes, and what is computed of them, that only checks have asked for."""
    for node in reversed(graph.nodes):
        unused = not node.users and isinstance(node.meta.get("val"), _NUMBERS)
        if unused and operator_name(node.target).startswith(("aten.sym_", "_operator.")):
            graph.erase_node(node)


class _Flat:
    """The graph that is being built; `found` maps the nodes of a source graph to what they made."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self._placeholders: dict[int, fx.Node] = {}  # a constant's id -> its placeholder

    def copy(self, node: fx.Node, found: Mapping[fx.Node, Any], *, grad: bool) -> fx.Node:
        """Copy one node."""
        args, kwargs = (_mapped(given, found) for given in (node.args, node.kwargs))
        made = self.graph.create_node(node.op, node.target, args, kwargs, node.name, node.type)
        made.meta = dict(node.meta)
        if not grad:
            made.meta["grad"] = False
        return made

    def paste(self, module: fx.GraphModule, found: dict[fx.Node, Any], *, grad: bool) -> Any:
        """Copy all nodes of a graph whose placeholders are found already; return its output."""
        for node in module.graph.nodes:
            if node.op == "output":
                return _mapped(node.args[0], found)
            if node.op == "get_attr":
                found[node] = self._attribute(module, node)
            elif node.op == "call_function":
                self._call(node, found, grad=grad)
        raise AssertionError("every graph of the framework has an output")

    def _call(self, node: fx.Node, found: dict[fx.Node, Any], *, grad: bool) -> None:
        target = node.target
        if target in _SWITCHES or str(target) in _CHECKS:
            found[node] = None
        elif target is operator.getitem and not isinstance(_made(node.args[0], found), fx.Node):
            found[node] = _made(node.args[0], found)[node.args[1]]
        elif isinstance(target, HigherOrderOperator):
            found[node] = self._open(node, _mapped(node.args, found), found, grad=grad)
        else:
            found[node] = self.copy(node, found, grad=grad)

    def _attribute(self, module: fx.GraphModule, node: fx.Node) -> Any:
        value: Any = module
        for part in str(node.target).split("."):
            value = getattr(value, part)
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self._placeholders:
            with self.graph.inserting_before(next(iter(self.graph.nodes), None)):
                made = self.graph.placeholder(node.name.lstrip("_"))
            made.meta["val"] = value
            self._placeholders[id(value)] = made
            self.constants[made.name] = value
        return self._placeholders[id(value)]

    def _open(
        self, node: fx.Node, args: tuple[Any, ...], found: dict[fx.Node, Any], *, grad: bool
    ) -> Any:
        """Put the body of a call of higher order in its place, if it is known how it is called."""
        bodies = [arg for arg in args if isinstance(arg, fx.GraphModule)]
        last = max((i for i, arg in enumerate(args) if isinstance(arg, fx.GraphModule)), default=-1)
        operands = _operands(args[last + 1 :])
        fits = all(len(body.graph.find_nodes(op="placeholder")) == len(operands) for body in bodies)
        name = str(node.target)
        if fits and len(bodies) == 1 and name not in ("map_impl", "scan"):
            if name == "wrap_with_set_grad_enabled":
                grad = bool(args[0])
            return self._body(bodies[0], operands, grad=grad)
        if fits and len(bodies) == 2 and name == "cond":
            yes, no = (self._body(body, operands, grad=grad) for body in bodies)
            if not isinstance(args[0], fx.Node):
                return yes if args[0] else no
            return tuple(self._where(args[0], *pair) for pair in zip(yes, no, strict=True))
        names = {body: f"graph of {len(body.graph.nodes)} nodes" for body in bodies}
        plain: Any = tuple(
            names.get(arg, arg) if isinstance(arg, fx.GraphModule) else arg for arg in args
        )
        made = self.graph.create_node("call_function", node.target, plain, {}, node.name)
        made.meta = dict(node.meta)
        return made

    def _body(self, body: fx.GraphModule, operands: list[Any], *, grad: bool) -> Any:
        inside = dict(zip(body.graph.find_nodes(op="placeholder"), operands, strict=True))
        return self.paste(body, inside, grad=grad)

    def _where(self, predicate: fx.Node, yes: Any, no: Any) -> Any:
        if not isinstance(yes, fx.Node) or not isinstance(no, fx.Node):
            return yes
        made = self.graph.call_function(torch.ops.aten.where.self, (predicate, yes, no))
        made.meta = dict(yes.meta)
        return made


def _operands(args: tuple[Any, ...]) -> list[Any]:
    """List what a body is called with, given as arguments or as one tuple; names do not count."""
    if len(args) == 1 and isinstance(args[0], tuple | list):
        return list(args[0])
    return [arg for arg in args if not isinstance(arg, str)]


def _made(node: Any, found: Mapping[fx.Node, Any]) -> Any:
    return found[node] if isinstance(node, fx.Node) else node


def _mapped(value: Any, found: Mapping[fx.Node, Any]) -> Any:
    """Replace nodes in arguments; unlike fx's own `map_arg`, by anything."""
    if isinstance(value, fx.Node):
        return found[value]
    if isinstance(value, tuple | list):
        items = (_mapped(item, found) for item in value)
        return tuple(items) if isinstance(value, tuple) else list(items)
    if isinstance(value, Mapping):
        return {key: _mapped(item, found) for key, item in value.items()}
    return value
