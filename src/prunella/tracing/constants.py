"""Numbers that follow from nothing: known while a model is captured, where tensors have none.

Export runs a model on stand-ins for tensors, and gives up at `if (std == 0).any()`. Where such a
tensor was made of constants alone, of no input, parameter or buffer, its numbers can be computed on
the spot.
"""

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental import proxy_tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

_READS = frozenset(
    (
        Tensor.__bool__,
        Tensor.__int__,
        Tensor.__float__,
        Tensor.__index__,
        Tensor.item,
        Tensor.tolist,
    )
)


class Constants(TorchFunctionMode):
    """Answers calls that ask a stand-in for its numbers, where these are constant."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[fx.Graph, _Known] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asked = func in _READS and isinstance(args[0], FakeTensor)
        if asked and (capture := proxy_tensor.get_proxy_mode()) is not None:
            tracer: Any = capture.tracer
            # Away from all modes: nothing of this is to be captured, nor that gradients are off.
            with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
                found = self._numbers(node_of(tracer, args[0]), tracer.root)
                if found is not None:
                    return func(found, *args[1:], **kwargs)
        return func(*args, **kwargs)

    def _numbers(self, node: fx.Node | None, root: Any) -> Tensor | None:
        """Return what a node makes; None where it is not constant."""
        if node is None:
            return None
        found = self._known.setdefault(node.graph, _Known()).of(node, root)
        return found if isinstance(found, Tensor) and not isinstance(found, FakeTensor) else None


class _Known:
    """All that is constant in a graph that is being built.

    Computed in the graph's order, each node once: a tensor may be written to by a view of it.
    """

    def __init__(self) -> None:
        self._values: dict[fx.Node, Any] = {}
        self._last: fx.Node | None = None  # how far it was computed
        self._is_lost = False  # something that is not constant was written into what was

    def of(self, node: fx.Node, root: Any) -> Any:
        """Compute what was added to the graph since the last time; return what a node makes."""
        step = next(iter(node.graph.nodes)) if self._last is None else self._last.next
        while step.op != "root" and not self._is_lost:
            if _is_constant(step, self._values):
                self._values[step] = _run(step, self._values, root)
            else:
                inputs = step.all_input_nodes
                self._is_lost = _writes(step) and any(given in self._values for given in inputs)
            self._last, step = step, step.next
        return None if self._is_lost else self._values.get(node)


def node_of(tracer: Any, tensor: Any) -> fx.Node | None:
    """Return the node of a tensor in the graph that is being built."""
    slot = proxy_tensor.get_proxy_slot(tensor, tracer, None)
    proxy = getattr(slot, "proxy", slot)
    node = getattr(proxy, "node", None)
    return node if isinstance(node, fx.Node) else None


def _is_constant(node: fx.Node, known: Mapping[fx.Node, Any]) -> bool:
    if node.op == "get_attr":
        return True
    made = node.target is operator.getitem or (
        isinstance(node.target, OpOverload)
        and torch.Tag.nondeterministic_seeded not in node.target.tags
    )
    return node.op == "call_function" and made and all(a in known for a in node.all_input_nodes)


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _run(node: fx.Node, known: Mapping[fx.Node, Any], root: Any) -> Any:
    if node.op == "get_attr":
        held = operator.attrgetter(str(node.target))(root)
        return held.clone() if isinstance(held, Tensor) else held
    args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
    return node.target(*args, **kwargs)  # type: ignore[operator]
