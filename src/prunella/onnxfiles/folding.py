"""Numbers that a graph computes and that are always the same: given to the node that uses them.

Exporters leave arithmetic on sizes in a graph: the 8 of `channels / heads` is read off a tensor
whose channels may be cut, although head_dim stays. What does not change with the inputs' open sizes
(the batch, height and width) is as good as a constant. So each use gets a number of its own, and
`writing` puts it into the file where the arithmetic would not come to it any more.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prunella.onnxfiles.inputs import Entry
from prunella.onnxfiles.network import NUMBERS, OnnxNetwork
from prunella.onnxfiles.numbers import Host


def fold(network: OnnxNetwork, inputs: Sequence[Tensor], asked: Sequence[Entry]) -> None:
    """Give nodes the computed numbers that they use and that do not change with open sizes.

    Args:
        network: Changed: numbers are put into its nodes.
        inputs: What it runs on.
        asked: The inputs of the graph, which say what sizes are open.
    """
    ours = _hosts(network, inputs)
    theirs = _other(network, inputs, asked) or ours
    constant = {name for name, host in ours.items() if theirs.get(name) == host and _whole(host)}
    for name, operands, outputs in network.calls:
        node = network.node(name)
        if node.unread or any(output in constant for output in outputs):
            continue
        numbers = outputs[0] in ours
        for index, operand in enumerate(operands):
            used = numbers or index in NUMBERS.get(node.op, ())
            if used and operand in constant and index not in node.kinds:
                node.keep(index, ours[operand])


def _whole(host: Host) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in host.values)


def _hosts(network: OnnxNetwork, inputs: Sequence[Tensor]) -> dict[str, Host]:
    found: dict[str, Host] = {}
    with torch.no_grad():
        network.run(inputs, found)
    return found


def _other(
    network: OnnxNetwork, inputs: Sequence[Tensor], asked: Sequence[Entry]
) -> Mapping[str, Host] | None:
    """Return the numbers for other open sizes; None where there are none, or none work."""
    known = {entry.name: entry for entry in asked}
    shapes = [known[name].shape for name in network.inputs]
    batch = {shape[0] for shape in shapes if shape and isinstance(shape[0], str)}
    others = {n for shape in shapes for n in shape if isinstance(n, str)} - batch
    for grown in ({n: 2 for n in others}, {}) if others else ({},):
        sizes = {n: 1 for n in batch} if batch else {}
        if not grown and not sizes:
            continue
        given = [
            _grown(tensor, shape, sizes, grown)
            for tensor, shape in zip(inputs, shapes, strict=True)
        ]
        try:
            return _hosts(network, given)
        except (RuntimeError, ValueError, IndexError):
            continue  # the sizes are open by name only
    return None


def _grown(
    tensor: Tensor,
    shape: Sequence[int | str],
    more: Mapping[Any, int],
    times: Mapping[Any, int],
) -> Tensor:
    """Repeat a tensor along open dimensions."""
    for dim, name in enumerate(shape):
        count = int(tensor.shape[dim])
        wanted = count * times.get(name, 1) + more.get(name, 0)
        if wanted != count:
            tensor = tensor.index_select(dim, torch.arange(wanted) % count)
    return tensor
