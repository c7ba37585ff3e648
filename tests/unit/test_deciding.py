"""Deciding: a model that computes the same up to rounding decides the same, and no other."""

import torch
from torch import Tensor

from prunella.certifying.deciding import Deciding, Decisions, Following


def choose(x: Tensor) -> list[Tensor]:
    scores, order = x.topk(2)
    large = (x > x.median()).nonzero()
    return [scores, order, large, x[order] + x[large[:, 0]].sum(), x.argsort().double()]


def follow(first: Tensor, second: Tensor) -> tuple[list[Tensor], list[Tensor], Decisions]:
    decisions = Decisions()
    with Deciding(decisions):
        wanted = choose(first)
    with Following(decisions, tolerance=1e-9):
        found = choose(second)
    return wanted, found, decisions


def test_ties_are_broken_alike() -> None:
    torch.manual_seed(0)
    x = torch.ones(50, dtype=torch.float64)
    noise = torch.randn(50, dtype=torch.float64) * 1e-15
    wanted, found, decisions = follow(x, x + noise)
    assert not torch.equal(choose(x + noise)[1], wanted[1])  # it would have decided otherwise
    assert all(torch.allclose(a, b) for a, b in zip(wanted, found, strict=True))
    assert 0 < decisions.gap < 1e-14


def test_other_grounds_lead_to_other_decisions() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 50, dtype=torch.float64)
    _, found, decisions = follow(x, y)
    assert all(torch.equal(a, b) for a, b in zip(choose(y), found, strict=True))
    assert decisions.gap == 0.0


def test_what_was_cut_decides_for_itself() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, dtype=torch.float64)
    _, found, _ = follow(x, x[:30])
    assert all(torch.equal(a, b) for a, b in zip(choose(x[:30]), found, strict=True))


def test_a_model_that_takes_another_course_is_on_its_own() -> None:
    x = torch.ones(5, dtype=torch.float64)
    decisions = Decisions()
    with Deciding(decisions):
        x.sort()
        x.topk(2)
    with Following(decisions, tolerance=1e-9):
        order = (x + torch.arange(5) * 1e-15).topk(2).indices
    assert order.tolist() == [4, 3]


def test_what_is_handed_on_is_a_copy() -> None:
    x = torch.randn(5)
    decisions = Decisions()
    with Deciding(decisions):
        first = x > 0
        first.zero_()
    with Following(decisions, tolerance=1e-9):
        assert torch.equal(x > 0, x.sign() > 0)
