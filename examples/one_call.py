"""Prune a ResNet-18 to half of its multiply-accumulates, save it, load it, time it."""

import tempfile

import torch
import torchvision

import prunella
from prunella.costs.latency import compare, speedup

model = torchvision.models.resnet18(num_classes=10).eval()  # your trained weights go here
example = torch.randn(1, 3, 64, 64)

result = prunella.prune(model, example, macs=0.5)
print(result.summary)
print(f"pruned and masked differ by {result.certificate.error:.1e} in {result.certificate.dtype}")

with tempfile.TemporaryDirectory() as folder:
    prunella.save(result.model, folder)
    pruned = prunella.load(folder, torchvision.models.resnet18(num_classes=10)).eval()

times = compare({"dense": model, "pruned": pruned}, example, seconds=1)
print("dense", times["dense"], "pruned", times["pruned"])
print(speedup(times["dense"], times["pruned"]))
