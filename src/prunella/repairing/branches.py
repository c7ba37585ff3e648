"""What becomes of what a mixer makes: norms and scales channel by channel, then the sum."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunella.graph import Graph, Node, Ref
from prunella.repairing.mixing import Mixer, users_of
from prunella.replaying import Course

_FAINT = 1e-3  # of the largest scale


@dataclass(frozen=True)
class Branch:
    """What becomes of what a mixer makes, channel by channel.

    Attributes:
        shift: The tensor that a constant can be taken from: what follows subtracts it.
        scale: Factor of every channel on the way to `beside`.
        beside: What is added at the end, None where nothing is.
    """

    shift: str | None
    scale: Tensor
    beside: str | None

    def steady(self) -> Tensor:
        """Return the scale, infinite for channels too faint to correct anything with."""
        scale = self.scale.float()
        return scale.masked_fill(scale.abs() <= _FAINT * scale.abs().max(), torch.inf)


def branches(
    course: Course, found: Iterable[Mixer], dense: Mapping[str, Tensor]
) -> dict[int, Branch]:
    """Follow what every mixer makes, by the mixer's index."""
    users = users_of(course.nodes)
    return {mixer.index: _branch(course, mixer, users, dense) for mixer in found}


def _branch(
    course: Course, mixer: Mixer, users: Mapping[str, list[int]], dense: Mapping[str, Tensor]
) -> Branch:
    graph = course.graph
    name = mixer.node.outputs[0]
    outs = mixer.outs(dense[mixer.weight])
    scale = torch.ones(outs, device=dense[mixer.weight].device)
    shift: str | None = None
    first = True
    while len(users.get(name, [])) == 1 and name not in graph.outputs:
        node = course.nodes[users[name][0]]
        if node.op.startswith("aten.batch_norm") and _is(node.args[0], name):
            gain, _, mean, variance = (_source(graph, item) for item in node.args[1:5])
            if mean is None or variance is None or _axis(graph, mixer, name) != 1:
                break
            scale = scale * (dense[variance] + node.args[7]).rsqrt()
            scale = scale if gain is None else scale * dense[gain]
            alone = _readers(graph, users, mean) == 1  # else the mean is of others too
            shift = mean if first and alone else shift
        elif node.op.startswith(("aten.mul.Tensor", "aten.mul_.Tensor")):
            other = next((a for a in node.args[:2] if not _is(a, name)), None)
            factor = _source(graph, other)
            if factor is None or not _by_channel(graph, mixer, name, dense[factor].shape, outs):
                break
            scale = scale * dense[factor].reshape(-1)
        elif not node.op.startswith(("aten.dropout", "aten.feature_dropout", "aten.alpha_dropout")):
            return Branch(shift, scale, _beside(graph, node, name))
        name, first = node.outputs[0], False
    return Branch(shift, scale, None)


def _axis(graph: Graph, mixer: Mixer, name: str) -> int:
    """Return along which dimension of what a mixer made its channels lie."""
    return 1 if mixer.spatial else len(graph.values[name].shape) - 1


def _by_channel(graph: Graph, mixer: Mixer, name: str, factor: Sequence[int], outs: int) -> bool:
    """Say whether a factor has one number for each channel, and none for anything else."""
    axis, rank = _axis(graph, mixer, name), len(graph.values[name].shape)
    whole = (*[1] * (rank - len(factor)), *factor)
    return whole == tuple(outs if dim == axis else 1 for dim in range(rank))


def _readers(graph: Graph, users: Mapping[str, list[int]], source: str) -> int:
    named = [name for name, value in graph.values.items() if value.source == source]
    return sum(len(users.get(name, [])) for name in named)


def _beside(graph: Graph, node: Node, name: str) -> str | None:
    if node.op not in ("aten.add.Tensor", "aten.add_.Tensor") or node.kwargs.get("alpha", 1) != 1:
        return None
    others = [a.name for a in node.args[:2] if isinstance(a, Ref) and a.name != name]
    if len(others) != 1 or graph.values[others[0]].kind != "activation":
        return None
    return others[0] if graph.values[others[0]].shape == graph.values[name].shape else None


def _is(argument: object, name: str) -> bool:
    return isinstance(argument, Ref) and argument.name == name


def _source(graph: Graph, argument: object) -> str | None:
    if not isinstance(argument, Ref):
        return None
    value = graph.values[argument.name]
    return value.source if value.kind in ("parameter", "buffer") else None
