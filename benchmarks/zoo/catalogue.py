"""The collections, imported when they are asked for: each needs a library of its own."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.zoo.network import Network


@dataclass(frozen=True)
class Collection:
    """Networks of one library.

    Attributes:
        name: As on the command line.
        title: As in the tables.
        module: Where `network(name)` builds one.
        listed: The function there that lists names.
        packages: What the networks come from, for their versions.
        uneven: Whether each is proven at uneven ratios too.
    """

    name: str
    title: str
    module: str
    packages: tuple[str, ...]
    listed: str = "names"
    uneven: bool = False

    def names(self) -> list[str]:
        """List the networks."""
        listed: list[str] = getattr(importlib.import_module(self.module), self.listed)()
        return listed

    @property
    def build(self) -> Callable[[str], Network]:
        """Return what builds a network."""
        built: Callable[[str], Network] = importlib.import_module(self.module).network
        return built


ALL = (
    Collection("torchvision", "torchvision", "benchmarks.zoo.torchvision", ("torchvision",)),
    Collection("timm", "timm: one network of every module", "benchmarks.zoo.timm", ("timm",)),
    Collection("transformers", "transformers", "benchmarks.zoo.hugging_face", ("transformers",)),
    Collection("yolo", "YOLO (Ultralytics)", "benchmarks.zoo.yolo", ("ultralytics",)),
)
"""What `all` means, and what the page of coverage shows."""

COLLECTIONS = {
    **{collection.name: collection for collection in ALL},
    "torchvision-cnn": Collection(
        "torchvision-cnn",
        "torchvision's convolutional classifiers",
        "benchmarks.zoo.torchvision",
        ("torchvision",),
        listed="convolutional",
        uneven=True,
    ),
}
