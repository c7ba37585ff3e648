"""Sizes written into a model's code: what does not run with fewer channels stays whole."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunella
from prunella.errors import NothingToPruneError
from prunella.pruning.probing import faithful


class LeNet(nn.Module):
    """The classic, with the size of its features spelled out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(-1, 400)
        return self.fc2(F.relu(self.fc1(x)))


IMAGE = torch.randn(2, 1, 32, 32)


def test_what_the_code_spells_out_is_left_whole_and_the_line_is_named() -> None:
    result = prunella.prune(LeNet(), IMAGE, ratio=0.5, form="class")
    assert [len(result.plan.channels[name]) for name in ("conv1", "fc1")] == [3, 60]
    assert "conv2" not in result.plan.channels
    stuck = next(group for group in result.summary.groups.frozen if group.name == "conv2")
    assert "x.view(-1, 400)" in str(stuck.frozen[0])
    assert prunella.count_macs(result.model, IMAGE) == result.plan.after.macs


def test_a_budget_is_met_by_the_others() -> None:
    result = prunella.prune(LeNet(), IMAGE, params=0.3, form="class")
    assert prunella.count_params(result.model) <= 0.3 * prunella.count_params(LeNet())
    assert result.model.conv2.out_channels == 16


def test_a_model_that_runs_keeps_its_groups() -> None:
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    groups = prunella.couple(prunella.trace(net, IMAGE))
    assert faithful(net, groups, (IMAGE,), {}) is groups


def test_nothing_left_is_an_error_with_the_line() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).mean((2, 3)).view(2, 4))

    with pytest.raises(NothingToPruneError, match=r"written into the code at .*view\(2, 4\)"):
        prunella.prune(Fixed(), IMAGE, ratio=0.5, form="class")


def test_where_the_code_holds_back_much_the_graph_comes_back() -> None:
    result = prunella.prune(LeNet(), IMAGE, ratio=0.5)
    assert result.form == "graph"
    assert [len(result.plan.channels[name]) for name in ("conv1", "conv2", "fc1")] == [3, 8, 60]
    assert "the captured graph, rewritten" in str(result.summary)
    assert prunella.count_macs(result.model, IMAGE) == result.plan.after.macs


def test_the_class_comes_back_where_an_attribute_says_the_size() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width = 4
            self.conv = nn.Conv2d(1, 4, 3)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).mean((2, 3)).view(-1, self.width))

    result = prunella.prune(Named(), IMAGE, ratio=0.5)
    assert type(result.model) is Named
    assert result.model.width == 2


@pytest.mark.parametrize("stuck", range(4))
def test_what_is_frozen_by_trying_leaves_the_others_free(stuck: int) -> None:
    class Insisting(nn.Module):
        """Does not take fewer channels behind one of its layers, in a way no capture shows."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(
                nn.Conv2d(8, 8, 3, padding=1, groups=g) for g in (1, 2, 1, 1)
            )
            self.stem, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for i, layer in enumerate(self.layers):
                x = layer(x).relu()
                if i == stuck and str(x.shape[1]) != "8":
                    raise ValueError("eight channels are expected")
            return self.head(x)

    result = prunella.prune(Insisting(), IMAGE, ratio=0.5)
    widths = [layer.out_channels for layer in result.model.layers]
    assert widths == [8 if i == stuck else 4 for i in range(4)]
