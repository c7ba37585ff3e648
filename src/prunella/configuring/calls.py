"""Does the model that a config builds compute the same?"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunella.model.blame import first_line
from prunella.model.examples import Arguments
from prunella.model.modes import evaluating
from prunella.model.outputs import tensors_in

_TOLERANCE = 1e-3  # relative; a config that computes something else is off by far more


@dataclass
class Call:
    """What a module was called with, and what it returned."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Tensor]

    def difference(self, rebuilt: nn.Module) -> str:
        """Say how far the rebuilt model is off on the same inputs; nothing where it is not."""
        said = "the new config has the right shapes, but the model built from it "
        try:
            found = list(tensors_in(_run(rebuilt, self.args, self.kwargs)))
        except Exception as error:  # noqa: BLE001 - whatever the class's own code raises
            return f"{said}does not run ({type(error).__name__}: {first_line(error)})"
        if [t.shape for t in found] != [t.shape for t in self.outputs]:
            return f"{said}returns other shapes"
        if all(map(_close, self.outputs, found)):
            return ""
        return f"{said}computes something else: its code uses a size as a number"


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with evaluating(model), torch.no_grad():
        torch.manual_seed(0)
        return model(*copy.deepcopy(args), **copy.deepcopy(kwargs))


def _close(expected: Tensor, found: Tensor) -> bool:
    if expected.device.type == "meta" or not expected.numel():
        return True
    expected, found = expected.detach().cpu().double(), found.detach().cpu().double()
    finite = expected[expected.isfinite()].abs()
    allowed = _TOLERANCE * (finite.max().item() if finite.numel() else 1.0)
    return torch.allclose(found, expected, rtol=0, atol=allowed, equal_nan=True)


def calls_of(model: nn.Module, paths: list[str], example: Arguments | None) -> dict[str, Call]:
    """Run a model, and write down the first call of each of some submodules."""
    calls: dict[str, Call] = {}
    if example is None:
        return calls

    def note(path: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            calls.setdefault(path, Call(args, kwargs, list(tensors_in(output))))

        return hook

    handles = [
        model.get_submodule(path).register_forward_hook(note(path), with_kwargs=True)
        for path in paths
    ]
    args, kwargs = example
    try:
        _run(model, args, kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return calls
