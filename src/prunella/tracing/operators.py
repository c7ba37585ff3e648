"""Find the operator that a node of a graph names."""

from collections.abc import Callable
from typing import Any

import torch


def operator_of(op: str) -> Callable[..., Any]:
    """Return the framework's operator called e.g. "aten.add.Tensor".

    Raises:
        AttributeError: This version of the framework has none of that name.
    """
    found: Any = torch.ops
    for part in op.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]
