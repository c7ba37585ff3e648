"""A captured graph that is run computes what the model computes, with nothing kept too long."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunella.graph import Node
from prunella.model.structure import tensors
from prunella.replaying import Values, bind, fits, put_back, replay, run_node, take_kept
from prunella.tracing import trace
from tests import oracle


class Odd(nn.Module):
    """Constants of its own, writing in place through views, a dict of outputs, plain arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.linear.weight
        self.register_buffer("scale", torch.rand(4), persistent=False)
        self.held = torch.arange(4.0)

    def forward(
        self, x: Tensor, times: int, *, mask: Tensor, extra: tuple[Tensor, Tensor] | None = None
    ) -> dict[str, Any]:
        x = self.tied(self.linear(x)) * torch.tensor([1.0, 2.0, 3.0, 0.1]) + self.held
        x[:, 0] = 1
        x[:, 1:3].mul_(times)
        x[:, 2:].relu_()
        left, right = x.chunk(2, 1)
        x = x.masked_fill(mask, torch.finfo(x.dtype).min)
        if extra is not None:
            x = x + extra[0] @ extra[1]
        return {"x": x, "parts": [left * self.scale[:2], {"right": right}], "times": times}


class Attention(nn.Module):
    """Views, permutes, a product of activations, windows that are shifted."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(12, 36)
        self.norm = nn.LayerNorm(12)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        x = torch.roll(self.norm(x), 1, 1)
        q, k, v = self.qkv(x).reshape(b, n, 3, 4, c // 4).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) * c**-0.5).softmax(-1)
        return F.scaled_dot_product_attention(q, k, attention @ v).transpose(1, 2).reshape(b, n, c)


EXTRA = (torch.randn(2, 3), torch.randn(3, 4))
MASK = torch.tensor([False, True, False, False])
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...], dict[str, Any]]] = {
    "odd": (Odd, (torch.randn(2, 4), 3), {"mask": MASK, "extra": EXTRA}),
    "attention": (Attention, (torch.randn(2, 6, 12),), {}),
}


def replayed(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    step: Callable[[Node, Values], list[Tensor]] = run_node,
) -> list[Tensor]:
    graph = trace(model, args, kwargs)
    with torch.no_grad():
        inputs = bind(graph, *copy.deepcopy((args, kwargs)))
        return replay(graph, tensors(model), inputs, step)


@pytest.mark.parametrize("name", CASES)
def test_a_replayed_graph_computes_what_the_model_computes(name: str) -> None:
    make, args, kwargs = CASES[name]
    model = make().eval()
    before = oracle.state(model)
    wanted = oracle.outputs(model, *copy.deepcopy((args, kwargs)))
    found = replayed(model, args, kwargs)
    assert len(found) == len(wanted)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert oracle.unchanged(model, before)


def test_other_tensors_give_other_outputs() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.randn(5, 3)
    graph = trace(model, x)
    other = {name: torch.randn_like(tensor) for name, tensor in tensors(model).items()}
    (found,) = replay(graph, other, {graph.inputs[0]: x}, run_node)
    model.load_state_dict(other)
    assert torch.equal(found, model(x))


def test_what_runs_only_in_training_is_left_out() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head, self.aux = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Any:
            x = self.body(x)
            return (self.head(x), self.aux(x)) if self.training else self.head(x)

    model, x = Auxiliary().eval(), torch.randn(5, 3)
    assert any(node.training for node in trace(model, x).nodes)
    seen: list[Node] = []

    def step(node: Node, values: Values) -> list[Tensor]:
        seen.append(node)
        return run_node(node, values)

    assert torch.equal(replayed(model, (x,), {}, step)[0], model(x))
    assert seen
    assert not any(node.training for node in seen)


def test_a_tensor_is_let_go_after_its_last_use() -> None:
    model = nn.Sequential(*(nn.Sigmoid() for _ in range(30))).eval()
    alive = []

    def step(node: Node, values: Values) -> list[Tensor]:
        alive.append(len(values))
        return run_node(node, values)

    replayed(model, (torch.randn(2, 3),), {}, step)
    assert len(alive) == 30
    assert max(alive) == 1


def test_arguments_are_bound_by_name_whatever_their_order() -> None:
    model = Odd().eval()
    x = torch.randn(2, 4)
    graph = trace(model, (x, 3), {"mask": MASK, "extra": EXTRA})
    found = bind(graph, (x, 3), {"extra": EXTRA, "mask": MASK})
    assert [found[name] is t for name, t in zip(graph.inputs, (x, MASK, *EXTRA), strict=True)]
    assert fits(graph, (x, 3), {"mask": MASK, "extra": EXTRA})
    assert not fits(graph, (torch.randn(3, 4), 3), {"mask": MASK, "extra": EXTRA})
    assert not fits(graph, (x, 3), {"mask": MASK})
    assert not fits(graph, (x, x), {"mask": MASK, "extra": EXTRA})
    assert not fits(graph, (x, 4), {"mask": MASK, "extra": EXTRA})


ROWS = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
MASKS = {
    "one dimension": (torch.tensor([1, 0, 1], dtype=torch.bool).view(1, 3, 1), (2, 2, 4)),
    "two dimensions": (
        torch.tensor([1, 0, 1], dtype=torch.bool).view(1, 3, 1)
        & torch.tensor([0, 1, 1, 0], dtype=torch.bool).view(1, 1, 4),
        (2, 2, 2),
    ),
    "rows that keep equally many": (ROWS.view(1, 3, 4), (2, 3, 2)),
    "rows that lie the other way": (ROWS.T.reshape(1, 4, 3), (2, 2, 3)),
    "a row that goes as a whole": (
        (ROWS & torch.tensor([[1], [0], [1]], dtype=torch.bool)).view(1, 3, 4),
        (2, 2, 2),
    ),
}


@pytest.mark.parametrize("name", MASKS)
def test_what_is_kept_is_taken_out_and_put_back(name: str) -> None:
    kept, shape = MASKS[name]
    wide = torch.randn(2, kept.shape[1], max(kept.shape[2], shape[2]))
    small = take_kept(wide, kept, shape)
    assert tuple(small.shape) == shape
    assert math.isclose(small.sum().item(), (wide * kept).sum().item(), abs_tol=1e-5)
    assert torch.equal(put_back(small, kept, tuple(wide.shape)), wide * kept)


def test_a_mask_that_leaves_no_block_is_refused() -> None:
    ragged = torch.tensor([[1, 0, 0], [1, 1, 0]], dtype=torch.bool)
    with pytest.raises(ValueError, match="no block of shape"):
        take_kept(torch.randn(2, 3), ragged, (2, 2))
