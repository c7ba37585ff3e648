"""Channels that are zeroed for a while."""

import torch
from torch import nn

import prunella
from prunella.masking import zeroed


def test_an_autocast_of_the_callers_does_not_hide_what_was_zeroed() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    x = torch.randn(3, 6)
    groups = prunella.couple(prunella.trace(model, x))
    group = next(iter(groups))
    gone = {group.name: range(group.channels)}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        dense = model(x)
        with zeroed(model, groups, gone):
            bias = model(x)
        after = model(x)
    torch.testing.assert_close(bias, model[2].bias.bfloat16().expand(3, 4))
    assert torch.equal(after, dense)
    assert not torch.equal(bias, dense)
