"""Every stage by hand, on a network with a residual and a parameter outside any module."""

import torch
from torch import Tensor, nn

import prunella


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 16, 1))
        self.scale = nn.Parameter(torch.ones(16, 1, 1))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.scale * self.body(x)
        return self.head(x.mean((2, 3)))


model, example = Net().eval(), torch.randn(2, 3, 16, 16)

groups = prunella.couple(prunella.trace(model, example))
for group in groups:
    axes = ", ".join(f"{axis.tensor}[{axis.dim}]" for axis in group.axes)
    print(f"{group.name}: {group.channels} channels on {axes}")
for reason in groups.why_frozen():
    print("frozen:", reason)

scores = prunella.score(model, groups, criterion="magnitude")
plan = prunella.allocate(groups, scores, prunella.Budget(macs=0.5))
print(f"{plan.before.macs:,} multiply-accumulates become {plan.after.macs:,}")

masked = prunella.mask(model, plan)
pruned = prunella.transform(model, plan)
assert prunella.count_macs(pruned, example) == plan.after.macs
assert torch.allclose(masked(example), pruned(example), atol=1e-5)
assert prunella.Plan.from_json(plan.to_json()) == plan
