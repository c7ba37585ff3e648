"""Rules registered from outside, for operators of one's own, and the check that holds them."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import prunella
from prunella.errors import NothingToPruneError
from prunella.graph import Node
from prunella.labels import Extent, Labels, Layers, Operand, spread
from prunella.rules import RULES, resizes, rule
from prunella.rules._registry import RESIZES
from prunella.testing import check_rule


@torch.library.custom_op("prunella_tests::swish", mutates_args=())
def swish(x: Tensor, slope: Tensor) -> Tensor:
    """A sigmoid gate with a slope for each channel."""
    return x * torch.sigmoid(x * slope.view(1, -1, *[1] * (x.ndim - 2)))


@torch.library.custom_op("prunella_tests::interleave", mutates_args=())
def interleave(x: Tensor) -> Tensor:
    """Channels of the two halves in turn: a0 b0 a1 b1 ..."""
    return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2).contiguous()


@torch.library.custom_op("prunella_tests::backwards", mutates_args=())
def backwards(x: Tensor) -> Tensor:
    return x.flip(1)


@torch.library.custom_op("prunella_tests::filled", mutates_args=())
def filled(x: Tensor, size: int) -> Tensor:
    """Takes the number of channels as an argument, as a kernel would."""
    if x.shape[1] != size:
        raise RuntimeError(f"{x.shape[1]} channels, {size} expected")
    return x.relu()


for op in (swish, interleave, backwards, filled):
    op.register_fake(lambda x, *_: torch.empty_like(x))


class Swish(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.linspace(0.5, 2.0, channels))

    def forward(self, x: Tensor) -> Tensor:
        return swish(x, self.slope)


@pytest.fixture(autouse=True)
def only_for_the_test() -> Iterator[None]:
    rules, sizes = dict(RULES), dict(RESIZES)
    yield
    for registry, before in ((RULES, rules), (RESIZES, sizes)):
        registry.clear()
        registry.update(before)


def register_swish() -> None:
    @rule("prunella_tests.swish.default")
    def _(labels: Labels, node: Node) -> Layers:
        x, slope = node.args
        shape = labels.shape(x)
        slopes = tuple(spread(layer, 1, len(shape)) for layer in labels.of(slope))
        wide = tuple(size if dim == 1 else 1 for dim, size in enumerate(shape))
        return labels.meet(shape, [labels.operand(x), Operand(slopes, wide)], node)


def register_interleave(*, equally_many: bool = True) -> None:
    @rule("prunella_tests.interleave.default")
    def _(labels: Labels, node: Node) -> Layers:
        made = []
        for layer in labels.of(node.args[0]):
            if layer.shape[1] > 1:
                halves = layer.reshape(2, -1)
                if equally_many:
                    labels.equal_rows(halves, node, moved=True)
                layer = halves.T.reshape(layer.shape)
            made.append(layer)
        return tuple(made)


def passing(op: str) -> None:
    """Claim that every channel comes out where it went in."""

    @rule(op)
    def _(labels: Labels, node: Node) -> Layers:
        return labels.of(node.args[0])


def test_a_channelwise_operator_with_parameters_of_its_own() -> None:
    register_swish()
    check_rule(Swish(8))
    check_rule(Swish(6), (3, 6), ratios=(0.5,))


def test_an_operator_that_moves_channels() -> None:
    register_interleave()
    check_rule(interleave)
    check_rule(lambda x: interleave(x.relu()).transpose(1, 2), (2, 12, 3))


def test_an_operator_that_takes_the_number_of_channels() -> None:
    passing("prunella_tests.filled.default")

    @resizes("prunella_tests.filled.default")
    def _(labels: Labels, node: Node) -> dict:
        return {(1,): Extent(node.args[0].name, 1, 0, node.args[1])}

    check_rule(lambda x: filled(x, x.shape[1]))
    check_rule(lambda x: filled(x, 8))  # as a class it is frozen, as a graph it is rewritten


def test_a_size_that_no_one_resizes_is_found() -> None:
    passing("prunella_tests.filled.default")
    with pytest.raises(AssertionError, match=r'in form "class".*8 expected'):
        check_rule(lambda x: filled(x, 8))


def test_a_rule_that_claims_too_much_is_found_with_the_channel_named() -> None:
    passing("prunella_tests.backwards.default")
    with pytest.raises(
        AssertionError, match=r"channel 0 reaches \[:, 7, 0, 0\], which is cut with channel 7"
    ):
        check_rule(backwards)


def test_rows_that_must_keep_equally_many_and_do_not_are_found() -> None:
    register_interleave(equally_many=False)
    with pytest.raises(AssertionError, match=r"pruned by 0\.\d+ in form"):
        check_rule(interleave, (2, 16, 3), ratios=(0.2, 0.3, 0.45, 0.6))


def test_a_rule_that_unites_without_need_is_found_unless_allowed() -> None:
    @rule("prunella_tests.filled.default")
    def _(labels: Labels, node: Node) -> Layers:
        for layer in labels.of(node.args[0]):
            labels.unite(layer[:, ::2], layer[:, 1::2])
        return labels.of(node.args[0])

    @resizes("prunella_tests.filled.default")
    def _(labels: Labels, node: Node) -> dict:
        return {(1,): Extent(node.args[0].name, 1, 0, node.args[1])}

    with pytest.raises(AssertionError, match="channels 0, 1 are cut together and have nothing"):
        check_rule(lambda x: filled(x, x.shape[1]))
    check_rule(lambda x: filled(x, x.shape[1]), coarser=True)


def test_a_rule_that_forgets_the_output_is_found() -> None:
    @rule("prunella_tests.backwards.default")
    def _(labels: Labels, node: Node) -> Layers:
        return ()

    with pytest.raises(AssertionError, match=r"channel 0 reaches \[:, 7, 0, 0\], which stays"):
        check_rule(backwards)


def test_an_operator_without_a_rule_freezes() -> None:
    check_rule(backwards, freezes=True)
    with pytest.raises(AssertionError, match=r"no channel may be cut: the operator has no rule"):
        check_rule(backwards)
    model = nn.Sequential(nn.Linear(4, 8), Backwards(), nn.Linear(8, 3))
    with pytest.raises(NothingToPruneError, match=r"no rule \(`prunella_tests\.backwards"):
        prunella.prune(model, torch.randn(2, 4), ratio=0.5)


class Backwards(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return backwards(x)


def test_the_librarys_own_rules_pass() -> None:
    check_rule(lambda x: x.softmax(1), ratios=(0.5,))
    check_rule(nn.LayerNorm(8), (2, 3, 8), dim=2, ratios=(0.5,))
    check_rule(lambda x: torch.cat([x, torch.zeros_like(x)], 2), ratios=(0.5,))
    check_rule(lambda x: x.cumsum(1), freezes=True)


def test_a_cut_that_was_not_meant_is_found() -> None:
    with pytest.raises(AssertionError, match="meant to stay, and may be cut"):
        check_rule(torch.relu, freezes=True)


def test_what_cannot_be_checked_is_said() -> None:
    with pytest.raises(AssertionError, match="one tensor that keeps dimension 0"):
        check_rule(lambda x: x.flatten(0, 1))
    with pytest.raises(AssertionError, match="something else every time"):
        check_rule(lambda x: torch.nn.functional.dropout(x, 0.5, True))
