"""Find what nothing read: rows of a table beyond those that the example inputs asked for.

A model that adds `positions[:, :length]` shows only its first rows when it is captured. The others
are tied to nothing, and so would seem free to go, until a longer input asks for them.
"""

import numpy as np

from prunella import rules
from prunella.graph import refs
from prunella.labels import Labels
from prunella.rules import cutting, movement

_COPIES = frozenset("to _to_copy clone contiguous alias detach type_as lift_fresh_copy".split())


def unread(labels: Labels, components: np.ndarray) -> np.ndarray:
    """Say of every component whether no operator but such that move it had it as an operand."""
    found = np.ones(components.max(initial=-1) + 1, dtype=bool)
    seen: set[str] = set()
    for node in labels.graph.nodes:
        if _moves(node.op):
            continue
        for ref in refs((node.args, node.kwargs)):
            if ref.name not in seen:
                seen.add(ref.name)
                _take(labels, ref.name, components, found)
    for name in labels.graph.outputs:
        _take(labels, name, components, found)
    return found


def _take(labels: Labels, name: str, components: np.ndarray, found: np.ndarray) -> None:
    for layer in labels.layers.get(name, ()):
        found[components[layer.reshape(-1).numpy()]] = False


def _moves(op: str) -> bool:
    function = rules.RULES.get(op)
    places = (movement.__name__, cutting.__name__)
    return getattr(function, "__module__", "") in places or op.split(".")[1] in _COPIES
