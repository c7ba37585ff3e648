"""What a recorded run did not reach is captured by a sibling's place, or keeps its surroundings."""

import pytest
import torch
from torch import Tensor, nn

import prunella
from prunella.graph import Graph
from prunella.tracing.unseen import at_hand
from tests import oracle
from tests.models import conv_norm, randomize


class Experts(nn.Module):
    """Sends every sample to one of several experts."""

    def __init__(self, count: int = 5) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.experts = nn.ModuleDict({f"e{i}": nn.Linear(8, 6) for i in range(count)})
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.stem(x).mean((2, 3))
        chosen = (x.sum((1, 2, 3)) > 0).long()  # only ever the first two
        out = rows.new_zeros(len(rows), self.head.in_features)
        for i in chosen.unique().tolist():
            (at,) = torch.where(chosen == i)
            out[at] = self.experts[f"e{i}"](rows[at])
        return self.head(out.relu())


def model_and_image(model: nn.Module) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return randomize(model).double().eval(), torch.randn(2, 3, 6, 6, dtype=torch.float64)


def test_siblings_that_were_not_reached_are_cut_alike() -> None:
    model, image = model_and_image(Experts())
    before = oracle.state(model)
    graph = prunella.trace(model, image)
    assert graph.recorded
    assert not graph.unused
    assert oracle.state(model).keys() == before.keys()
    result = prunella.prune(model, image, ratio=0.5)
    assert {m.weight.shape for m in result.model.experts.values()} == {(3, 4)}
    for expert in result.model.experts.values():  # any of them may be chosen
        result.model.experts["e0"] = result.model.experts["e1"] = expert
        assert result.model(image).isfinite().all()


def test_several_captures_share_no_names() -> None:
    model, image = model_and_image(Experts())
    graph: Graph = prunella.trace(model, image)
    names = [node.name for node in graph.nodes]
    assert len(set(names)) == len(names)
    assert len(graph.inputs) == 1
    assert sum(node.op == "aten.linear.default" for node in graph.nodes if not node.training) < 5


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.body = nn.Sequential(conv_norm(8, 12), conv_norm(12, 8))
        self.often = nn.Conv2d(8, 8, 1)
        self.rarely = nn.Linear(8, 8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x))
        if x.mean().item() < 1e6:
            x = self.often(x).relu().mean((2, 3))
        else:
            x = self.rarely(x.mean((2, 3)))
        return self.fc(x)


def test_what_an_unseen_branch_may_use_stays() -> None:
    model, image = model_and_image(Branching())
    graph = prunella.trace(model, image)
    assert graph.unused == ("rarely.weight", "rarely.bias")
    assert set(at_hand(graph).values()) == {"rarely"}
    result = prunella.prune(model, image, ratio=0.5)
    kept = result.model
    assert kept.rarely.weight.shape == (8, 8)
    assert kept.body[1][0].out_channels == kept.stem[0].out_channels == kept.often.out_channels == 8
    assert kept.body[0][0].out_channels == 6  # inside a module: out of reach
    reasons = {reason.reason for group in prunella.couple(graph).frozen for reason in group.frozen}
    assert any("rarely" in reason for reason in reasons)


@pytest.mark.parametrize("count", [2, 3])
def test_an_exported_model_has_nothing_unseen(count: int) -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(count)))
    assert at_hand(prunella.trace(model, torch.randn(2, 4))) == {}
