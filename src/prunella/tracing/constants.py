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

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asked = func in _READS and isinstance(args[0], FakeTensor)
        if asked and (capture := proxy_tensor.get_proxy_mode()) is not None:
            tracer: Any = capture.tracer
            # Away from all modes: nothing of this is to be captured.
            with torch.no_grad(), _disable_current_modes(), torch._C.DisableTorchFunction():
                found = _numbers(node_of(tracer, args[0]), tracer.root)
                if found is not None:
                    return func(found, *args[1:], **kwargs)
        return func(*args, **kwargs)


def node_of(tracer: Any, tensor: Any) -> fx.Node | None:
    """Return the node of a tensor in the graph that is being built."""
    slot = proxy_tensor.get_proxy_slot(tensor, tracer, None)
    proxy = getattr(slot, "proxy", slot)
    node = getattr(proxy, "node", None)
    return node if isinstance(node, fx.Node) else None


def _numbers(node: fx.Node | None, root: Any) -> Tensor | None:
    """Compute what a node makes; None where it is not constant."""
    known: dict[fx.Node, Any] = {}
    # All that is constant, in order: a tensor may be written to by way of a view of it.
    for step in node.graph.nodes if node is not None else ():
        if _is_constant(step, known):
            known[step] = _run(step, known, root)
        elif _writes(step) and any(given in known for given in step.all_input_nodes):
            return None
    found = known.get(node) if node is not None else None
    return found if isinstance(found, Tensor) and not isinstance(found, FakeTensor) else None


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
