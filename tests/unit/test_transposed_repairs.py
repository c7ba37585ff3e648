"""Transposed convolutions are fitted like all that mixes channels."""

import pytest
import torch
from torch import Tensor, nn

import prunella
from prunella.graph import Node
from prunella.model.structure import tensors
from prunella.repairing.mixing import input_of, mixers
from prunella.replaying import bind, replay, run_node
from tests.unit.test_compensating import check_rows
from tests.unit.test_odd_repairs import both, drawn, error

KINDS = {
    "plain": (nn.ConvTranspose2d(4, 6, 3), (4, 5, 7)),
    "halves": (nn.ConvTranspose2d(4, 6, 2, stride=2, bias=False), (4, 5, 7)),
    "all at once": (
        nn.ConvTranspose2d(
            4, 6, (3, 4), stride=(2, 3), padding=(1, 2), output_padding=(1, 0), dilation=(1, 2)
        ),
        (4, 6, 5),
    ),
    "dilated": (nn.ConvTranspose2d(4, 6, 3, stride=2, dilation=3, padding=2), (4, 5, 4)),
    "grouped": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2), (4, 5, 5)),
    "line": (nn.ConvTranspose1d(4, 6, 5, stride=3, padding=1, output_padding=2), (4, 9)),
    "solid": (nn.ConvTranspose3d(4, 6, 3, stride=2, padding=1, groups=2), (4, 3, 4, 3)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_times_weight_are_what_is_made(kind: str) -> None:
    torch.manual_seed(0)
    layer, shape = KINDS[kind]
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    model = nn.Sequential(layer.eval())
    x = drawn(3, *shape)
    graph = prunella.trace(model, x)
    nodes = tuple(graph.nodes)
    (mixer,) = mixers(graph, nodes)
    named = tensors(model)

    def step(node: Node, values: dict[str, Tensor]) -> object:
        made = run_node(node, values)
        check_rows(mixer, named, values[input_of(node).name], made[0])
        return made

    with torch.no_grad():
        replay(graph, named, bind(graph, (x,), {}), step)


@pytest.mark.parametrize("groups", [1, 2])
def test_what_another_channel_says_already_is_restored_exactly(groups: int) -> None:
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 3, padding=1)
    with torch.no_grad():  # in each half, the last two say what the first two say
        for half in (0, 4):
            first.weight[half + 2 : half + 4] = first.weight[half : half + 2]
            first.bias[half + 2 : half + 4] = first.bias[half : half + 2]
    up = nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1, groups=groups)
    net = nn.Sequential(first, nn.Tanh(), up).eval()
    inputs = drawn(64, 3, 7, 7)
    result = prunella.prune(net, inputs[:2], ratio=0.5, calibration=list(inputs.split(16)))
    assert result.model[0].out_channels == 4
    # What is missing is the damping's share.
    assert error(net, result.model, drawn(16, 3, 7, 7)) < 1e-4


class Decoder(nn.Module):
    """Down and up again, with a skip: concat before one of the transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 12, 3, 2, 1), nn.Conv2d(12, 24, 3, 2, 1)
        self.up, self.norm = nn.ConvTranspose2d(24, 12, 4, 2, 1), nn.BatchNorm2d(12)
        self.last = nn.ConvTranspose2d(24, 5, 2, 2)
        self.norm.running_mean.normal_(std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x).relu()
        up = self.norm(self.up(self.deep(skip).relu())).relu()
        return self.last(torch.cat([up, skip], 1))


@pytest.mark.parametrize("seed", range(3))
def test_decoders_are_repaired(seed: int) -> None:
    torch.manual_seed(seed)
    cut, repaired = both(Decoder(), drawn(64, 3, 16, 16))
    assert repaired < 0.7 * cut
