"""What stands in for a model whose code spells sizes out: generated code and the user's tensors."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from prunella.errors import ConfigError
from prunella.labels import Shape
from prunella.model.containers import filled, matched
from prunella.rewriting.emitting import Program


@dataclass(frozen=True)
class Way:
    """One way through the network: how arguments become tensors, those others, those results.

    Attributes:
        takes: The arguments of the capture by name, with a `Ref` in place of each tensor.
        shapes: The shapes of the inputs by the name of the tensor; None for a size that is free.
        program: The code.
        returns: What it returns, emptied of tensors.
        constants: Tensors that the original's code itself holds, by attribute of the module.
    """

    takes: Mapping[str, Any]
    shapes: Mapping[str, tuple[int | None, ...]]
    program: Program
    returns: Any
    constants: Mapping[str, Tensor]

    def __deepcopy__(self, memo: object) -> "Way":
        return self

    def read(self, given: Mapping[str, Any]) -> list[Tensor]:
        """Return the tensors that the code takes, found among arguments by name."""
        found: dict[str, Tensor] = {}
        for name, wanted in self.takes.items():
            found.update(matched(wanted, given[name], name))
        for name, shape in self.shapes.items():
            if not _fits(found[name].shape, shape):
                raise ConfigError(
                    f"an input has the shape {tuple(found[name].shape)}; this model was captured "
                    f"with {_spelled(shape)}, and sizes in its code follow from that. Prune with "
                    "example inputs of the shape you need"
                )
        return [found[name] for name in self.program.inputs]


def _fits(found: Shape, shape: tuple[int | None, ...]) -> bool:
    return len(found) == len(shape) and all(
        b is None or a == b for a, b in zip(found, shape, strict=True)
    )


def _spelled(shape: tuple[int | None, ...]) -> str:
    return f"({', '.join('any' if n is None else str(n) for n in shape)})"


class _Holder(nn.Module):
    """Holds the tensors of one module of the original."""

    def extra_repr(self) -> str:
        held = {**self._parameters, **self._buffers}.items()
        return ", ".join(f"{name}={tuple(t.shape)}" for name, t in held if t is not None)


class Rewritten(_Holder):
    """A captured network in new sizes, with the tensors of the original under their names.

    It trains, moves between devices, and can be copied, exported, saved and pruned again. It takes
    arguments like those the model was captured with, in batches of any size. It is no instance of
    the original's class and has none of its other methods; its submodules only hold tensors.

    Attributes:
        signature: The arguments of the original's forward.
    """

    def __init__(self, original: str, signature: inspect.Signature, ways: tuple[Way, Way]) -> None:
        super().__init__()
        self.signature = signature
        self._original = original
        self._ways = ways
        for way in ways:
            for name, tensor in way.constants.items():
                setattr(self, name, tensor)

    @property
    def code(self) -> str:
        """Return the Python code that runs in evaluation mode."""
        return self._ways[0].program.source

    @property
    def training_code(self) -> str:
        """Return the Python code that runs in training mode."""
        return self._ways[1].program.source

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute what the original computes, in this module's sizes."""
        way = self._ways[self.training]
        outputs = way.program.run(self, *way.read(bound(self.signature, args, kwargs)))
        return filled(way.returns, dict(zip(way.program.outputs, outputs, strict=True)))

    def hold(self, name: str, tensor: Tensor, *, persistent: bool = True) -> None:
        """Register a parameter or buffer under its qualified name."""
        path, _, leaf = name.rpartition(".")
        holder: nn.Module = self
        for part in filter(None, path.split(".")):
            if part not in holder._modules:
                holder.add_module(part, _Holder())
            holder = holder.get_submodule(part)
        if isinstance(tensor, nn.Parameter):
            holder.register_parameter(leaf, tensor)
        else:
            holder.register_buffer(leaf, tensor, persistent=persistent)

    def _get_name(self) -> str:
        return f"Rewritten{self._original}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Rewritten":
        """Let the constants move along: they are no buffers, which would be the user's."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in {name for way in self._ways for name in way.constants}:
            setattr(self, name, fn(getattr(self, name)))
        return self


def signature_of(model: nn.Module) -> inspect.Signature:
    """Return the arguments that a model takes, without their types."""
    if isinstance(model, Rewritten):
        return model.signature
    found = inspect.signature(model.forward)
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()]
    return inspect.Signature(plain)


def bound(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Name the arguments of a call, those left at their defaults too."""
    arguments = signature.bind(*args, **kwargs)
    arguments.apply_defaults()
    return dict(arguments.arguments)
