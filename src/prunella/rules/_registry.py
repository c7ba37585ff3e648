"""Where rules are kept: an operator's name to the function that moves labels through it."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from prunella.graph import Node, Path, refs
from prunella.labels import Extent, Labels, Layers
from prunella.tracing.operators import operator_of

Rule = Callable[[Labels, Node], Layers | list[Layers]]
"""Given the record and a node: the layers of its output, or a list of them for several outputs."""

RULES: dict[str, Rule] = {}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of operators, e.g. `@rule("aten.relu.default")`."""

    def register(function: Rule) -> Rule:
        for op in ops:
            # Of two of ours the order of imports would choose; one of a user's replaces ours.
            known = RULES.get(op, function)
            assert known is function or not (_is_ours(known) and _is_ours(function)), op
            RULES[op] = function
        return function

    return register


def _is_ours(function: Rule) -> bool:
    return function.__module__.startswith(f"{__package__}.")


Resizes = Callable[[Labels, Node], dict[Path, Extent]]
"""Which integer arguments of a node are sizes, and of what."""

RESIZES: dict[str, Resizes] = {}


def resizes(*ops: str) -> Callable[[Resizes], Resizes]:
    """Register a function that tells which arguments of operators change with what is cut."""

    def register(function: Resizes) -> Resizes:
        for op in ops:
            RESIZES[op] = function
        return function

    return register


def extents(labels: Labels, node: Node) -> dict[Path, Extent]:
    """Say which integer arguments of a node are sizes, and of what."""
    found = RESIZES.get(node.op)
    return found(labels, node) if found else {}


def argument(node: Node, index: int, name: str, default: Any = None) -> Any:
    """Return an argument of a node, whether it was passed by position or by name."""
    return node.args[index] if index < len(node.args) else node.kwargs.get(name, default)


def run_on(node: Node, layer: Tensor) -> Tensor:
    """Run a node's own operator on a layer in place of its first argument."""
    made: Tensor = operator_of(node.op.replace("_.", "."))(layer, *node.args[1:], **node.kwargs)
    return made


def apply(labels: Labels, node: Node) -> None:
    """Move labels through one node, writing the layers of its outputs."""
    made = RULES.get(node.op, no_rule)(labels, node)
    results = made if isinstance(made, list) else [made]
    for name, layers in zip(node.outputs, results, strict=True):
        labels.layers[name] = layers


def no_rule(labels: Labels, node: Node) -> list[Layers]:
    """Freeze everything an unknown operator touches: unknown can never mean wrong."""
    for ref in refs((node.args, node.kwargs)):
        for layer in labels.of(ref):
            labels.freeze(layer, "the operator has no rule", node)
    return [() for _ in node.outputs]
