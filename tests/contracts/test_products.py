"""Products of all kinds: what a plan predicts of their MACs is what is counted on the pruned model.

input -> produce -> expression, with weights of its own -> consume
"""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunella
from prunella.errors import NothingToPruneError
from tests.property.laws import costs

ORDERED = torch.ops.aten.einsum  # as `opt_einsum` has it called, where it is installed
ROWS, INPUTS, CHANNELS = 5, 6, 12


class Own(nn.Module):
    """The weights of an expression."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape) / shape[0] ** 0.5))

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)


class Multiplied(nn.Module):
    """Takes `[2, rows, inputs]`; the expression gets `[2, rows, channels]`."""

    def __init__(self, expression: Callable[[Any, Tensor], Tensor], own: Own) -> None:
        super().__init__()
        self.produce, self.expression, self.own = nn.Linear(INPUTS, CHANNELS), expression, own
        made = expression(own, torch.randn(2, ROWS, CHANNELS))
        self.consume = nn.Linear(made.shape[-1], 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.consume(self.expression(self.own, F.relu(self.produce(x))))
        return found


def linear_attention(own: Any, x: Tensor) -> Tensor:
    q, k = (x @ own.q).softmax(-1), (x @ own.k).softmax(1)
    state = torch.einsum("bnd,bne->bde", k, x @ own.v)
    return torch.einsum("bnd,bde->bne", q, state)


def performer(own: Any, x: Tensor) -> Tensor:
    q, k, v = (torch.einsum("bnd,dhk->bhnk", x, w) for w in (own.q, own.k, own.v))
    q, k = (torch.einsum("bhnk,mk->bhnm", t, own.random).exp() for t in (q, k))
    norm = torch.einsum("bhnm,bhm->bhn", q, k.sum(2))
    y = torch.einsum("bhnm,bhmk,bhn->bhnk", q, torch.einsum("bhnm,bhnk->bhmk", k, v), 1 / norm)
    return torch.einsum("bhnk,hkd->bnd", y, own.out)


def scan(own: Any, x: Tensor) -> Tensor:
    """A selective scan as Mamba has it."""
    step, write, read = F.softplus(x @ own.step), x @ own.write, x @ own.read
    decay = torch.exp(-torch.einsum("bld,dn->bldn", step, own.decay.exp()))
    given = torch.einsum("bld,bln,bld->bldn", step, write, x)
    state, made = torch.zeros_like(given[:, 0]), []
    for t in range(x.shape[1]):
        state = decay[:, t] * state + given[:, t]
        made.append(torch.einsum("bdn,bn->bd", state, read[:, t]))
    return torch.stack(made, 1)


def experts(own: Any, x: Tensor) -> Tensor:
    """Soft mixtures: slots of experts take means over the rows."""
    scores = torch.einsum("bnd,dep->bnep", x, own.slots)
    taken = torch.einsum("bnep,bnd->bepd", scores.softmax(1), x)
    hidden = torch.einsum("bepd,edf->bepf", taken, own.up).relu()
    back = torch.einsum("bepf,efd->bepd", hidden, own.down)
    return torch.einsum("bnep,bepd->bnd", scores.softmax(2), back)


PRODUCTS: dict[str, tuple[Callable[[Any, Tensor], Tensor], dict[str, tuple[int, ...]]]] = {
    "linear attention": (linear_attention, {"q": (12, 7), "k": (12, 7), "v": (12, 9)}),
    "performer": (
        performer,
        {"q": (12, 3, 4), "k": (12, 3, 4), "v": (12, 3, 5), "out": (3, 5, 8), "random": (6, 4)},
    ),
    "scan": (scan, {"step": (12, 12), "write": (12, 6), "read": (12, 6), "decay": (12, 6)}),
    "experts": (experts, {"slots": (12, 3, 2), "up": (3, 12, 8), "down": (3, 8, 12)}),
    "three": (
        lambda own, x: torch.einsum("bni,oij,bnj->bno", x, own.w, x @ own.v),
        {"w": (7, 12, 8), "v": (12, 8)},
    ),
    "chain": (
        lambda own, x: torch.einsum("bni,ij,jk,kl->bnl", x, own.a, own.b, own.c),
        {"a": (12, 5), "b": (5, 4), "c": (4, 9)},
    ),
    "outer": (
        lambda own, x: torch.einsum("bni,bmj->bnmij", x, x @ own.a).flatten(3).mean(2) @ own.b,
        {"a": (12, 3), "b": (36, 8)},
    ),
    "grams": (lambda own, x: torch.einsum("bni,bmi,bmj->bnj", x, x, x) @ own.a, {"a": (12, 8)}),
    "channels": (
        lambda own, x: torch.einsum("bcd,bnd->bnc", torch.bmm(x.mT, x).softmax(-1), x) @ own.a,
        {"a": (12, 8)},
    ),
    "gate": (
        lambda own, x: torch.einsum("bnc,bc->bnc", x, (x.mean(1) @ own.a @ own.b).sigmoid()),
        {"a": (12, 4), "b": (4, 12)},
    ),
    "ends alone": (lambda own, x: torch.einsum("bni,bnj->bi", x, x @ own.a), {"a": (12, 8)}),
    "in an order": (
        lambda own, x: ORDERED("bnd,de,ef->bnf", [x, own.a, own.b], path=[1, 2, 0, 1]),
        {"a": (12, 4), "b": (4, 9)},
    ),
    "vector from the right": (
        lambda own, x: (x @ own.q).softmax(-1) @ own.a,
        {"q": (12,), "a": (5, 9)},
    ),
    "vector from the left": (lambda own, x: own.q @ x @ own.a, {"q": (5,), "a": (12, 9)}),
    "vector, transposed": (
        lambda own, x: x.mT @ own.q.softmax(0) @ own.a,
        {"q": (5,), "a": (12, 9)},
    ),
    "vector as a weight": (
        lambda own, x: F.linear(x, own.q).unsqueeze(-1) * own.a,
        {"q": (12,), "a": (9,)},
    ),
}  # fmt: skip


def targets(groups: prunella.Groups) -> list[Any]:
    """An even ratio; uneven ones; one group down to one channel."""
    draw = random.Random(0)
    names = [group.name for group in groups]
    return [
        0.5,
        *({name: draw.choice((0.0, 0.3, 0.6)) for name in names} for _ in range(2)),
        *({other: 0.999 * (other == name) for other in names} for name in names),
    ]


def build(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    expression, shapes = PRODUCTS[name]
    model = Multiplied(expression, Own(**shapes)).double().eval()
    return model, torch.randn(2, ROWS, INPUTS, dtype=torch.float64)


@pytest.mark.parametrize("name", sorted(PRODUCTS))
def test_predicted_macs_are_those_counted_on_the_pruned_model(name: str) -> None:
    model, x = build(name)
    groups = prunella.couple(prunella.trace(model, x))
    scores = prunella.score(model, groups, "random")
    cut = set()
    for target in targets(groups):
        try:
            plan = prunella.allocate(groups, scores, target)
        except NothingToPruneError:
            continue
        cut |= set(plan.channels)
        costs(model, plan, prunella.transform(model, plan, x), x)
    assert cut == {group.name for group in groups}


@pytest.mark.parametrize("name", sorted(PRODUCTS))
def test_the_least_budget_is_kept_too(name: str) -> None:
    model, x = build(name)
    groups = prunella.couple(prunella.trace(model, x))
    scores = prunella.score(model, groups, "random")
    least = prunella.allocate(groups, scores, dict.fromkeys([g.name for g in groups], 0.999))
    plan = prunella.allocate(groups, scores, prunella.Budget(macs=least.after.macs))
    assert plan.after.macs <= least.after.macs
    counted = prunella.count_macs(prunella.transform(model, plan, x), x)
    # An einsum that sums over two dimensions, both down to one channel, is predicted to multiply.
    exact = name not in ("experts", "performer")
    assert counted == plan.after.macs if exact else counted <= plan.after.macs


class Chosen(nn.Module):
    """Only some rows go through a layer: here none."""

    def __init__(self) -> None:
        super().__init__()
        self.produce, self.layer, self.consume = (
            nn.Linear(6, 12),
            nn.Linear(12, 12),
            nn.Linear(12, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.produce(x)
        mask = x.sum((1, 2)) > 1e9
        out = y.clone()
        out[mask] = self.layer(y[mask])
        found: Tensor = self.consume(out)
        return found


def test_a_layer_that_no_row_was_sent_through_costs_nothing() -> None:
    torch.manual_seed(0)
    model, x = Chosen().eval(), torch.randn(2, ROWS, INPUTS)
    result = prunella.prune(model, x, ratio=0.5)
    costs(model, result.plan, result.model, x)
