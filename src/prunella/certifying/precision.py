"""Compute everything in one precision, whatever precision the model's own code asks for."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

_RAISED = {
    torch.float64: {
        torch.float16: torch.float64,
        torch.bfloat16: torch.float64,
        torch.float32: torch.float64,
        torch.complex32: torch.complex128,
        torch.complex64: torch.complex128,
    },
    torch.float32: {
        torch.float16: torch.float32,
        torch.bfloat16: torch.float32,
        torch.complex32: torch.complex64,
    },
}


class AtLeast(TorchDispatchMode):
    """Raise every lower precision to `dtype`: of tensors, of results, of what operators are told.

    Models cast to float32 in the midst of their forward (norms, softmax, rotary embeddings), and a
    comparison in float64 would see the digits lost there. Numbers that are the limits of a lower
    precision (the smallest float32 as a mask) become those of `dtype`.
    """

    supports_higher_order_operators = True  # they run as they are: their parts are no arguments

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._raised = _RAISED[dtype]
        real = [low for low in self._raised if low.is_floating_point]
        self._limits = {
            getattr(torch.finfo(low), name): getattr(torch.finfo(dtype), name)
            for low in real
            for name in ("min", "max")
        }

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operator with all its arguments raised."""
        if not isinstance(func, OpOverload):
            return func(*args, **(kwargs or {}))
        if func._schema.is_mutable:  # what is written to must stay the same memory
            return func(*self._numbers(args), **self._numbers(kwargs or {}))
        return self._raise(func(*self._raise(args), **self._raise(kwargs or {})))

    def _raise(self, item: Any) -> Any:
        if isinstance(item, Tensor):
            raised = self._raised.get(item.dtype)
            return item if raised is None else item.to(raised)
        return self._numbers(item, self._raise)

    def _numbers(self, item: Any, inner: Callable[[Any], Any] | None = None) -> Any:
        """Raise what is no tensor."""
        inner = inner or self._numbers
        if isinstance(item, float):
            return self._limits.get(item, item)
        if isinstance(item, torch.dtype):
            return self._raised.get(item, item)
        if isinstance(item, tuple | list):
            return type(item)(map(inner, item))
        if isinstance(item, dict):
            return {key: inner(value) for key, value in item.items()}
        return item
