"""What a pruned model must stand: it trains, exports, is saved and loaded, costs what was said."""

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import prunella
from benchmarks.zoo.network import Arguments, Draw, Network
from prunella.model.blame import first_line
from prunella.model.outputs import tensors_in

YES = "yes"
SAMPLES = 2
"""Samples of a training step: the fewest that batch norms in training mode take."""


def costs(result: prunella.PruneResult, inputs: Arguments) -> str:
    """Compare predicted costs with those counted on the pruned model."""
    args, kwargs = inputs
    said = result.plan.after
    found = prunella.count_macs(result.model, args, kwargs), prunella.count_params(result.model)
    return YES if found == (said.macs, said.params) else f"{said} predicted, {found} counted"


def loads(pruned: nn.Module, fresh: nn.Module, inputs: Arguments) -> str:
    """Save a pruned model and load it into a fresh instance; compare what both compute."""
    args, kwargs = inputs
    with tempfile.TemporaryDirectory() as folder:
        prunella.save(pruned, folder)
        loaded = prunella.load(folder, fresh)
    with torch.no_grad():
        pairs = zip(
            tensors_in(pruned.eval()(*args, **kwargs)),
            tensors_in(loaded.eval()(*args, **kwargs)),
            strict=True,
        )
        same = all(_alike(a, b) for a, b in pairs)
    return YES if same else "loaded, it computes something else"


def _alike(one: Tensor, other: Tensor) -> bool:
    """Compare to the rounding of float32: the same weights elsewhere in memory sum up otherwise."""
    if torch.equal(one, other) or not one.is_floating_point():
        return torch.equal(one, other)
    largest = float(one.nan_to_num(0.0, 0.0, 0.0).abs().amax())
    return torch.allclose(one, other, rtol=1e-5, atol=1e-5 * largest, equal_nan=True)


def exports(pruned: nn.Module, dense: nn.Module, inputs: Arguments) -> str:
    """Export with `torch.export`; where that fails, say whether it fails on the dense model too."""
    said = _export(pruned, inputs)
    if said != YES and _export(dense, inputs) != YES:
        return "dense does not either"
    return said


def _export(model: nn.Module, inputs: Arguments) -> str:
    args, kwargs = inputs
    try:
        torch.export.export(_Tensors(model.eval()), args, kwargs, strict=False)
    except Exception as error:  # noqa: BLE001 - whatever the model's own code raises
        return f"{type(error).__name__}: {first_line(error)}"
    return YES


class _Tensors(nn.Module):
    """Returns a model's output as a tuple of tensors: containers (caches) are not all exported."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        return tuple(tensors_in(self.model(*args, **kwargs)))


def trains(pruned: nn.Module, network: Network) -> str:
    """Take one step in training mode with both models; compare which parameters get a gradient."""
    draw = network.training or network.inputs
    dense_said, wanted = _step(network.model, draw)
    if dense_said != YES:
        return "dense does not either"
    said, found = _step(pruned, draw)
    if said != YES:
        return said
    missing = sorted(wanted - found)
    return f"no gradient for {', '.join(missing[:3])} ({len(missing)})" if missing else YES


def _step(model: nn.Module, draw: Draw) -> tuple[str, set[str]]:
    """Return what went wrong or "yes", and the parameters with a gradient."""
    torch.manual_seed(1)
    args, kwargs = draw(SAMPLES)
    model.train()
    try:
        outputs = [out for out in tensors_in(model(*args, **kwargs)) if out.requires_grad]
        if not outputs:
            return "no output depends on the parameters", set()
        loss = torch.stack([out.pow(2).mean() for out in outputs]).sum()
        loss.backward()
    except Exception as error:  # noqa: BLE001 - whatever the model's own code raises
        return f"{type(error).__name__}: {first_line(error)}", set()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    if not bool(loss.isfinite()):
        return f"loss {float(loss)}", set()
    broken = [name for name, grad in found.items() if not bool(grad.isfinite().all())]
    if broken:
        return f"gradient of {broken[0]} is not finite", set()
    return YES, set(found)


def attempt(check: Callable[[], str]) -> str:
    """Run a check; an error of its own is its answer."""
    try:
        return check()
    except Exception as error:  # noqa: BLE001 - a row of the table is never lost
        return f"{type(error).__name__}: {first_line(error)}"
