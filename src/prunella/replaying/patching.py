"""Let a model's own norm modules take their statistics over the kept channels only.

For models whose course depends on the data: their graph is the record of one run and cannot be run
in their place, so the masked model is the user's own, and its norms must know what is kept.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from prunella.coupling import NORMS
from prunella.coupling.resizing import Resized
from prunella.errors import CertificateError
from prunella.graph import Node, refs
from prunella.replaying.replaying import put_back, take_kept

_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "aten.layer_norm.default": F.layer_norm,
    "aten.group_norm.default": F.group_norm,
    "aten.rms_norm.default": F.rms_norm,
}


@contextmanager
def norms_over_kept(model: nn.Module, resized: Resized) -> Iterator[None]:
    """Patch the norms of a masked model for a while.

    Args:
        model: The masked model.
        resized: What is kept of the network.

    Raises:
        CertificateError: Something that is no norm module takes statistics over channels.
    """
    changed = _by_module(model, resized)
    for name, (node, kept) in changed.items():
        module = model.get_submodule(name)
        module.forward = _over_kept(module.forward, node, kept)
    try:
        yield
    finally:
        for name in changed:
            del model.get_submodule(name).forward


def _by_module(model: nn.Module, resized: Resized) -> dict[str, tuple[Node, Tensor]]:
    """Find the norm modules that lose channels, with a node of theirs and what it keeps."""
    marked = set(resized.flow.groups.marked)
    found: dict[str, tuple[Node, Tensor]] = {}
    for node in resized.nodes:
        first = next(iter(refs(node.args)), None) if node.name in marked else None
        kept = None if first is None else resized.kept(first.name)
        if kept is None:
            continue
        if node.op not in _FUNCTIONS or not isinstance(model.get_submodule(node.module), NORMS):
            raise CertificateError(
                f"{node.where()} takes statistics over channels of which some are cut, and what it "
                "would compute without them cannot be told: the captured graph does not compute "
                "what the model computes. Exclude the modules around it"
            )
        kept = _along_normalised(node, kept)
        if not torch.equal(found.setdefault(node.module, (node, kept))[1], kept):
            raise CertificateError(
                f"{node.where()} is called with other channels each time; exclude the modules "
                "around it"
            )
    return found


def _along_normalised(node: Node, kept: Tensor) -> Tensor:
    """Return what is kept along the dimensions that have weights; other dimensions stay whole."""
    if node.op == "aten.group_norm.default":
        return kept.reshape(kept.shape[1])
    return kept.reshape(kept.shape[kept.ndim - len(node.args[1]) :])


def _over_kept(forward: Any, node: Node, kept: Tensor) -> Any:
    def patched(*args: Any, **kwargs: Any) -> Any:
        with _OverKept(node, kept):
            return forward(*args, **kwargs)

    return patched


class _OverKept(TorchFunctionMode):
    """Gives a norm function what is kept, and puts what it returns back among zeros."""

    def __init__(self, node: Node, kept: Tensor) -> None:
        super().__init__()
        self._node = node
        self._kept = kept

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a function, a norm over what is kept."""
        if func is not _FUNCTIONS[self._node.op]:
            return func(*args, **(kwargs or {}))
        given = inspect.signature(func).bind(*args, **(kwargs or {}))
        x, settings = given.arguments["input"], given.arguments
        shape, size = list(x.shape), self._node.args[1]
        if func is F.group_norm:
            kept = self._kept.reshape(-1, *[1] * (x.ndim - 2))
            shape[1] = int(self._kept.sum())
            settings["num_groups"] = size
        else:
            kept = self._kept
            shape[x.ndim - len(size) :] = settings["normalized_shape"] = list(size)
        for name in ("weight", "bias"):
            if settings.get(name) is not None:
                settings[name] = take_kept(settings[name], self._kept, _shape(self._kept, size))
        wide = kept.reshape((1,) * (x.ndim - kept.ndim) + tuple(kept.shape))
        settings["input"] = take_kept(x, wide, tuple(shape))
        return put_back(func(*given.args, **given.kwargs), wide, tuple(x.shape))


def _shape(kept: Tensor, size: int | Sequence[int]) -> tuple[int, ...]:
    return (int(kept.sum()),) if isinstance(size, int) else tuple(size)
