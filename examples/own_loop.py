"""Prune in rounds with a training loop of your own; the plan speaks of the original throughout."""

import torch
from torch import nn

import prunella

torch.manual_seed(0)
images = torch.randn(512, 1, 8, 8)
labels = (images.mean((1, 2, 3)) > 0).long()


def train(model: nn.Module, epochs: int, lr: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[index]), labels[index]).backward()
            optimizer.step()
    model.eval()


def accuracy(model: nn.Module) -> float:
    with torch.inference_mode():
        return (model(images).argmax(1) == labels).float().mean().item()


dense = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
    nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2),
)  # fmt: skip
train(dense, epochs=8, lr=0.01)
print(f"dense: accuracy {accuracy(dense):.3f}, {prunella.count_macs(dense, images[:1]):,} MACs")

model = dense
for _ in range(3):
    model = prunella.prune(model, images[:1], macs=0.6).model
    before = accuracy(model)
    train(model, epochs=4, lr=0.005)
    macs = prunella.count_macs(model, images[:1])
    print(f"accuracy {before:.3f}, finetuned {accuracy(model):.3f}, {macs:,} MACs")

plan = prunella.plan_of(model)
assert plan is not None
print("kept of the original's first layer:", plan.kept["0.weight"][0])
