"""Where rules are kept: an operator's name to the function that moves labels through it."""

from collections.abc import Callable
from typing import Any

from prunella.graph import Node, refs
from prunella.labels import Labels, Layers

Rule = Callable[[Labels, Node], Layers | list[Layers]]
"""Given the record and a node: the layers of its output, or a list of them for several outputs."""

RULES: dict[str, Rule] = {}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of operators, e.g. `@rule("aten.relu.default")`."""

    def register(function: Rule) -> Rule:
        for op in ops:
            RULES[op] = function
        return function

    return register


def argument(node: Node, index: int, name: str, default: Any = None) -> Any:
    """Return an argument of a node, whether it was passed by position or by name."""
    return node.args[index] if index < len(node.args) else node.kwargs.get(name, default)


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
