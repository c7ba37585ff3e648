"""Every network of several collections: pruned, proven, and what it took."""

from benchmarks.zoo.torchvision import build
from benchmarks.zoo.torchvision import convolutional as names

__all__ = ["build", "names"]
