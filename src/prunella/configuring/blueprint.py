"""What a class and a config make: the sizes of tensors, found without memory for them."""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from prunella.configuring.numbers import Place, get
from prunella.model.blame import first_line
from prunella.model.structure import device_of, tensors

_INITIALIZE = "initialize_weights"

Key = tuple[str, int | str]
"""A size: (tensor, dimension) or (module, attribute)."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model's tensors, and of whatever its modules remember as integers.

    `standard` names the modules of torch's own classes.
    """

    shapes: dict[Key, int]
    attributes: dict[Key, int]
    standard: frozenset[str]


def sizes_of(model: nn.Module) -> Sizes:
    """Read the sizes off a model."""
    shapes: dict[Key, int] = {
        (name, dim): size
        for name, tensor in tensors(model).items()
        for dim, size in enumerate(tensor.shape)
    }
    attributes: dict[Key, int] = {}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, int) and not isinstance(value, bool) and attribute[0] != "_":
                attributes[name, attribute] = int(value)
    standard = frozenset(
        name for name, module in model.named_modules() if type(module).__module__[:6] == "torch."
    )
    return Sizes(shapes, attributes, standard)


def _nothing(model: nn.Module) -> None:
    """Leave the weights as they are."""


@dataclass
class Blueprint:
    """Builds the user's class from the dict of a config."""

    kind: Any
    config_kind: Any
    failure: str = ""
    _known: dict[str, Sizes | None] = field(default_factory=dict)

    def build(self, written: Mapping[str, Any], device: torch.device | str) -> Any:
        """Build the class with arbitrary weights; None (and `failure`) where it refuses."""
        try:
            with ExitStack() as stack:
                for context in (
                    _unheard(), torch.random.fork_rng([]), torch.device(device), _Unfilled()
                ):  # fmt: skip
                    stack.enter_context(context)
                owners = [base for base in self.kind.__mro__ if _INITIALIZE in vars(base)]
                if owners:
                    # It may draw until all numbers are right, and nothing is ever filled here. It
                    # belongs to a base class: the models inside this one have it too.
                    stack.enter_context(mock.patch.object(owners[-1], _INITIALIZE, _nothing))
                return self.kind(self._config(written))
        except Exception as error:  # noqa: BLE001 - whatever the class's own code raises
            self.failure = f"{type(error).__name__}: {first_line(error)}"
            return None

    def _config(self, written: Mapping[str, Any]) -> Any:
        return self.config_kind.from_dict(copy.deepcopy(dict(written)))

    def without(self, written: Mapping[str, Any], place: Place) -> Any:
        """Return the value a config works out for a number that is left out, None if it fails."""
        short = copy.deepcopy(dict(written))
        del get(short, place[:-1])[place[-1]]
        try:
            with _unheard():
                return get(self._config(short).to_dict(), place)
        except Exception:  # noqa: BLE001 - whatever the class's own code raises
            return None

    def sizes(self, written: Mapping[str, Any]) -> Sizes | None:
        """Tell the sizes of what a config describes, None where it describes nothing."""
        key = repr(written)
        if key not in self._known:
            built = self.build(written, "meta")
            self._known[key] = None if built is None else sizes_of(built)
        return self._known[key]

    def with_tensors_of(self, model: nn.Module, written: Mapping[str, Any]) -> Any:
        """Build the class as if loaded from a file of the model's tensors; they are shared."""
        built = self.build(written, device_of(model))
        if built is not None:
            try:
                built.load_state_dict(model.state_dict(), assign=True)
            except RuntimeError as error:
                self.failure = first_line(error)
                return None
        return built


class _Unfilled(TorchFunctionMode):
    """Leaves out random initialisation: it takes long, and the values are never used."""

    _RANDOM = frozenset({"normal_", "uniform_", "trunc_normal_", "erfinv_", "bernoulli_"})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self._RANDOM and args:
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def _unheard() -> Iterator[None]:
    """Keep a class from complaining about configs that only we shall ever see."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
