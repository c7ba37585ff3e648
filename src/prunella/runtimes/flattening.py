"""A model as a function of named tensors: whatever its arguments and outputs are packed in."""

import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunella.errors import ConfigError
from prunella.model.containers import emptied, filled
from prunella.model.examples import Arguments
from prunella.model.outputs import tensors_in

_NAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, eq=False)
class Form:
    """What the arguments of a call are packed in; what is no tensor among them is a constant.

    Attributes:
        names: What the tensors are called, in their order.
        example: The tensors themselves.
    """

    names: tuple[str, ...]
    example: tuple[Tensor, ...]
    _leaves: tuple[Any, ...]
    _spec: Any

    def arguments(self, tensors: Sequence[Tensor]) -> Arguments:
        """Put tensors where the example's were."""
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        packed: Arguments = pytree.tree_unflatten(leaves, self._spec)
        return packed

    def tensors(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """Take the tensors out of the arguments of another call.

        Raises:
            ConfigError: They are packed otherwise than the example's.
        """
        leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
        found = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
        if spec != self._spec or len(found) != len(self.example):
            raise ConfigError(
                f"the example inputs are {len(self.example)} tensors ({', '.join(self.names)}), "
                f"other inputs are {len(found)} or packed otherwise. Give an example that is "
                "packed as the data are"
            )
        return found


def form_of(model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None) -> Form:
    """Read off an example call how the arguments of a model are packed, and name its tensors.

    Args:
        model: Names positional arguments as its `forward` does.
        args: One tensor or the positional arguments.
        kwargs: Keyword arguments.

    Raises:
        ConfigError: There is no tensor among them.
    """
    given = (args,) if isinstance(args, Tensor) else tuple(args)
    named, spec = pytree.tree_flatten_with_path((given, dict(kwargs or {})))
    parameters = _parameters(model, len(given))
    found = [(_name(path, parameters), leaf) for path, leaf in named if isinstance(leaf, Tensor)]
    if not found:
        raise ConfigError(
            f"the example inputs of `{type(model).__name__}` hold no tensor. Give what one call "
            "of the model takes"
        )
    return Form(
        tuple(unique(name for name, _ in found)),
        tuple(tensor for _, tensor in found),
        tuple(leaf for _, leaf in named),
        spec,
    )


class Flat(nn.Module):
    """Takes the tensors among a model's arguments, one by one; gives the tensors of its output.

    Outputs are found as the certificate finds them; a cache that a language model returns is not
    among them.

    Args:
        model: Any module; shared, not copied.
        form: How its arguments are packed.
    """

    def __init__(self, model: nn.Module, form: Form) -> None:
        super().__init__()
        self.model = model
        self.form = form
        self.training = model.training

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the model on tensors in the order of the form."""
        args, kwargs = self.form.arguments(tensors)
        return tuple(tensors_in(self.model(*args, **kwargs)))


class Open(nn.Module):
    """Calls a model by named arguments, and gives its output without what nobody can look into.

    A cache, say, becomes None. The names are those of a call: `torch.export` cannot write a dynamic
    batch down for inputs that `forward` takes as `*args` or `**kwargs`.

    Args:
        model: Any module; shared, not copied.
        args: The positional arguments of a call.
        kwargs: The keyword arguments.
    """

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

        def forward(*args: Any, **kwargs: Any) -> Any:
            output = model(*args, **kwargs)
            numbers = [str(i) for i, _ in enumerate(tensors_in(output))]
            held = dict(zip(numbers, tensors_in(output), strict=True))
            return filled(emptied(output, iter(numbers)), held)

        either, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
        names = _parameters(model, len(args))[: len(args)]
        forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(name, either) for name in names]
            + [inspect.Parameter(name, keyword) for name in kwargs]
        )
        self.forward = forward


def opened(model: nn.Module, form: Form) -> nn.Module:
    """Give the model, or `Open` of it where `torch.export` would not know its inputs or outputs."""
    args, kwargs = form.arguments(form.example)
    leaves = pytree.tree_leaves(output_of(model, form))
    known = all(leaf is None or isinstance(leaf, Tensor | int | float | str) for leaf in leaves)
    named = inspect.signature(model.forward).parameters
    gathered = len(args) > sum(p.kind in _NAMED for p in named.values()) or not kwargs.keys() <= {
        name for name, p in named.items() if p.kind is not p.VAR_KEYWORD
    }
    return Open(model, args, kwargs) if gathered or not known else model


def output_of(model: nn.Module, form: Form) -> Any:
    """Run a model on its example.

    Raises:
        ConfigError: There is no tensor in what it returns.
    """
    args, kwargs = form.arguments(form.example)
    with torch.no_grad():
        output = model(*args, **kwargs)
    if next(tensors_in(output), None) is None:
        raise ConfigError(
            f"`{type(model).__name__}` returns no tensor, got a {type(output).__name__}. Wrap it "
            "in a module that returns what is wanted"
        )
    return output


def output_names(output: Any) -> list[str]:
    """Name the tensors of an output, by key or by number, in the order of `tensors_in`."""
    return unique(name or "output" for name in _paths(output, ""))


def _parameters(model: nn.Module, count: int) -> list[str]:
    """Name the positional parameters of `forward`."""
    names: list[str] = []
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{name}_{i}" for i in range(count)]
        elif parameter.kind in _NAMED:
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


def unique(names: Iterable[str]) -> list[str]:
    """Number names that come again."""
    seen: dict[str, int] = {}
    found: list[str] = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return found
