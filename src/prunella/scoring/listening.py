"""What weights are multiplied with: the mean square of every input that a parameter reads."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from prunella.calibration import Calibration
from prunella.model.modes import evaluating, unfused_attention
from prunella.plan import Axis, Groups

_PRODUCTS = {"mm": 0, "bmm": 0, "_grouped_mm": 0, "addmm": 1, "baddbmm": 1}
"""Where the first factor is among the arguments; the second follows it."""

_COPIES = frozenset("_to_copy clone".split())

Heard = Iterator[tuple[Axis, Tensor, int]]
"""An axis that reads, what it is multiplied with, and along which dimension of that."""


def inputs_of(model: nn.Module, groups: Groups, data: Calibration) -> dict[Axis, Tensor]:
    """Return the mean square of what the positions of each reading axis are multiplied with.

    Whoever multiplies: a module, a function, a product written out. What is looked at are the
    operators that the framework runs in the end, and which of their factors lie in a parameter's
    memory. Weights that are computed before they are used, and operators that do many things at
    once (a fused recurrent layer), are not seen; their axes are left out.

    Args:
        model: The model; left as it is.
        groups: Its groups.
        data: Batches.
    """
    listener = _Listener(model, groups)
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        evaluating(model),
        unfused_attention(),
        listener,
    ):
        for args, kwargs in data.batches:
            model(*args, **kwargs)
    return {axis: total / listener.counts[axis] for axis, total in listener.squares.items()}


class _Listener(TorchDispatchMode):
    """Sums the squares of what parameters are multiplied with."""

    def __init__(self, model: nn.Module, groups: Groups) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.groups = groups
        self.squares: dict[Axis, Tensor] = {}
        self.counts: dict[Axis, int] = defaultdict(int)
        wanted = {axis.tensor for group in groups for axis in group.axes}
        self._parameters: dict[int, list[tuple[str, Tensor]]] = defaultdict(list)
        for name, tensor in model.named_parameters():
            if name in wanted:
                self._parameters[_memory(tensor)].append((name, tensor))
        self._copies: list[Tensor] = []  # kept, so that nothing else gets their memory

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__  # type: ignore[attr-defined]
        for axis, x, dim in self._heard(name, args):
            self._add(axis, x, dim)
        made = func(*args, **(kwargs or {}))
        if name in _COPIES and made.stride() == args[0].stride():
            # A weight in another precision (autocast) is still that weight.
            known = self._parameters.get(_memory(args[0]))
            if known and _memory(made) != _memory(args[0]):
                self._parameters[_memory(made)] = known
                self._copies.append(made)
        return made

    def _heard(self, name: str, args: tuple[Any, ...]) -> Heard:
        if name == "convolution":
            x, weight, transposed = args[0], args[1], args[6]
            for source, tensor in self._parameters.get(_memory(weight), ()):
                if tensor.shape == weight.shape:
                    yield Axis(source, 0 if transposed else 1), x, 1
        elif name in _PRODUCTS:
            a, b = args[_PRODUCTS[name] :][:2]
            yield from ((axis, a, -1) for axis in self._along(b, -2))
            yield from ((axis, b, -2) for axis in self._along(a, -1))

    def _along(self, factor: Tensor, dim: int) -> Iterator[Axis]:
        """Yield the axis of a parameter that dimension `dim` of a view of it runs along."""
        for source, tensor in self._parameters.get(_memory(factor), ()):
            for place, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
                if size > 1 and (size, stride) == (factor.shape[dim], factor.stride(dim)):
                    yield Axis(source, place)

    def _add(self, axis: Axis, x: Tensor, dim: int) -> None:
        number = self.groups.axes.get(axis)
        if number is None:
            return
        wide = x.detach().movedim(dim, -1).reshape(-1, x.shape[dim]).float()
        squares = wide.square().sum(0)
        count = len(wide)
        if squares.numel() != number.size:  # conv groups that share their columns
            count *= squares.numel() // number.size
            squares = squares.view(-1, number.size).sum(0)
        self.squares[axis] = self.squares.get(axis, 0) + squares
        self.counts[axis] += count


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
