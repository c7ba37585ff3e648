"""A model as a function of named tensors: whatever its arguments and outputs are packed in."""

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunella.errors import ConfigError
from prunella.model.outputs import tensors_in


class Flat(nn.Module):
    """Takes the tensors among a model's arguments, one by one; gives the tensors of its output.

    What is no tensor among the arguments is a constant. Outputs are found as the certificate finds
    them; a cache that a language model returns is not among them.

    Args:
        model: Any module; shared, not copied.
        args: Positional arguments, one tensor or a tuple.
        kwargs: Keyword arguments.
    """

    def __init__(self, model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None) -> None:
        super().__init__()
        given = (args,) if isinstance(args, Tensor) else tuple(args)
        named, self._spec = pytree.tree_flatten_with_path((given, dict(kwargs or {})))
        self._constants = [None if isinstance(leaf, Tensor) else leaf for _, leaf in named]
        self._places = [i for i, (_, leaf) in enumerate(named) if isinstance(leaf, Tensor)]
        parameters = _parameters(model, len(given))
        self.input_names = _unique(_name(named[i][0], parameters) for i in self._places)
        self.example: list[Tensor] = [named[i][1] for i in self._places]
        self.model = model
        self.training = model.training
        if not self.example:
            raise ConfigError(
                f"the example inputs of `{type(model).__name__}` hold no tensor. Give what one "
                "call of the model takes"
            )

    def arguments(self, tensors: tuple[Tensor, ...]) -> Any:
        """Put tensors where the example's were: `(args, kwargs)`."""
        leaves = list(self._constants)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        return pytree.tree_unflatten(leaves, self._spec)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the model on tensors in the order of `input_names`."""
        args, kwargs = self.arguments(tensors)
        return tuple(tensors_in(self.model(*args, **kwargs)))

    def output_names(self) -> list[str]:
        """Run the model on its example and name what comes out, by key or by number."""
        args, kwargs = self.arguments(tuple(self.example))
        with torch.no_grad():
            output = self.model(*args, **kwargs)
        names = list(_paths(output, ""))
        if not names:
            raise ConfigError(
                f"`{type(self.model).__name__}` returns no tensor, got a "
                f"{type(output).__name__}. Wrap it in a module that returns what is wanted"
            )
        return _unique(name or "output" for name in names)


def _parameters(model: nn.Module, count: int) -> list[str]:
    """Name the positional parameters of `forward`."""
    names: list[str] = []
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{name}_{i}" for i in range(count)]
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(name)
    return names


def _name(path: tuple[Any, ...], parameters: list[str]) -> str:
    kind, first, *rest = (
        getattr(step, "key", getattr(step, "idx", getattr(step, "name", step))) for step in path
    )
    place = int(str(first)) if kind == 0 else -1
    head = parameters[place] if 0 <= place < len(parameters) else f"input_{first}"
    return "_".join(map(str, [head if kind == 0 else first, *rest]))


def _paths(output: Any, prefix: str) -> Iterator[str]:
    """Name tensors in the order of `tensors_in`."""
    if isinstance(output, Tensor):
        yield prefix
        return
    inner: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(output, Mapping):
        inner = iter(output.items())
    elif isinstance(output, tuple | list):
        start = f"{prefix}_" if prefix else "output_"
        for index, value in enumerate(output):
            yield from _paths(value, f"{start}{index}")
        return
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        inner = ((field.name, getattr(output, field.name)) for field in dataclasses.fields(output))
    for key, value in inner:
        yield from _paths(value, f"{prefix}_{key}" if prefix else str(key))


def _unique(names: Iterator[str]) -> list[str]:
    seen: dict[str, int] = {}
    found: list[str] = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return found
