"""What a recorded run did not reach: experts no row was sent to, the other side of an `if`.

Siblings of what was reached can stand in for it in another run. What is left unseen may use any
tensor that the forward around it had at hand, so these must stay as they are.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from prunella.graph import Graph, refs
from prunella.model.structure import prefixes

_OUTSIDE = "the model's caller"

Pairs = list[tuple[nn.Module, nn.Module]]
"""Modules that are called, each with the one that is to run in its place."""


def understudies(model: nn.Module, unused: Collection[str]) -> Iterator[Pairs]:
    """Say which modules can stand in for which, so that in the end each of them has run.

    Siblings are children of one module, of the same class and with tensors of the same shapes.

    Args:
        model: The model.
        unused: Names of the parameters that no run has used.
    """
    waiting: list[tuple[list[nn.Module], list[nn.Module]]] = []
    for path, parent in model.named_modules():
        kinds: dict[Any, tuple[list[nn.Module], list[nn.Module]]] = {}
        for name, child in parent.named_children():
            own = [f"{path}.{name}.{leaf}".lstrip(".") for leaf, _ in child.named_parameters()]
            shapes = tuple((leaf, tuple(t.shape)) for leaf, t in child.named_parameters())
            seen, unseen = kinds.setdefault((type(child), shapes), ([], []))
            if own:
                (unseen if all(leaf in unused for leaf in own) else seen).append(child)
        waiting += [(seen, unseen) for seen, unseen in kinds.values() if seen and unseen]
    while waiting:
        yield [pair for seen, unseen in waiting for pair in zip(seen, unseen, strict=False)]
        waiting = [(s, rest) for s, unseen in waiting if (rest := unseen[len(s) :])]


@contextmanager
def standing_in(pairs: Pairs) -> Iterator[None]:
    """Let the second of each pair run wherever the first is called."""
    before = [(called, dict(called.__dict__)) for called, _ in pairs]
    for called, other in pairs:
        called.__dict__["forward"] = _calling(other)
    try:
        yield
    finally:
        for called, attributes in before:
            called.__dict__.clear()
            called.__dict__.update(attributes)


def _calling(other: nn.Module) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return other(*args, **kwargs)

    return forward


def at_hand(graph: Graph) -> dict[str, str]:
    """List the tensors that what was not reached may use, each with the unseen module's name.

    They are those that the forward around it makes, uses, or passes from one of its modules to
    another; what it did with a tensor that nothing used cannot be told.
    """
    if not graph.recorded or not graph.unused:
        return {}
    places: dict[str, set[str]] = {
        name: {_OUTSIDE} for name, value in graph.values.items() if value.kind == "input"
    }
    used = set(graph.outputs)
    for node in graph.nodes:
        for name in node.outputs:
            places[name] = {node.module}
        for ref in refs((node.args, node.kwargs)):
            used.add(ref.name)
            if ref.name in places:
                places[ref.name].add(node.module)
    for name in graph.outputs:
        places.setdefault(name, set()).add(_OUTSIDE)
    found: dict[str, str] = {}
    for unseen in _unseen_modules(graph):
        around = unseen.rpartition(".")[0]
        for name, modules in places.items():
            parts = {_part(module, around) for module in modules}
            if parts != {None} and (len(parts) > 1 or "" in parts or name not in used):
                found.setdefault(name, unseen)
    return found


def _unseen_modules(graph: Graph) -> list[str]:
    """List the outermost modules none of whose parameters was used."""
    used = {
        value.source
        for node in graph.nodes
        for ref in refs((node.args, node.kwargs))
        if (value := graph.values.get(ref.name)) is not None and value.kind == "parameter"
    }
    reached = {prefix for name in used for prefix in prefixes(name)}
    found = []
    for name in graph.unused:
        outermost = next((p for p in prefixes(name) if p not in reached), name)
        if outermost not in found:
            found.append(outermost)
    return found


def _part(module: str, around: str) -> str | None:
    """Name the child of `around` that a module is in; "" is itself, None is elsewhere."""
    if module == around:
        return ""
    if module == _OUTSIDE:
        return None
    if around and not module.startswith(f"{around}."):
        return None
    rest = module[len(around) + 1 :] if around else module
    return rest.split(".")[0]
