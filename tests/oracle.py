"""Independent answers to what the library claims; nothing here calls the library.

`masked` and `sliced` apply `plan.kept` with plain indexing. `poisoned_units` finds coupled channels
by experiment: a NaN put into one channel shows which channels it reaches.
"""

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Kept = Mapping[int, tuple[Any, ...]]


def outputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Run the model and list every tensor of its output."""
    with torch.no_grad():
        return list(leaves(model(*args, **kwargs)))


def leaves(value: Any) -> Iterator[Tensor]:
    """Yield every tensor of an output."""
    if isinstance(value, Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)


def difference(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest error, relative to the largest value of its tensor."""
    assert len(found) == len(wanted)
    worst = 0.0
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape, f"an output changed its shape: {a.shape}, {b.shape}"
        if b.numel():
            scale = max(b.abs().max().item(), 1e-30)
            worst = max(worst, (a - b).abs().max().item() / scale)
    return worst


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def state(model: nn.Module) -> dict[str, Tensor]:
    """Copy everything a failed call must not change."""
    return {name: tensor.detach().clone() for name, tensor in tensors(model).items()}


def unchanged(model: nn.Module, before: Mapping[str, Tensor]) -> bool:
    now = tensors(model)
    return now.keys() == before.keys() and all(
        now[name].shape == before[name].shape and torch.equal(now[name], before[name])
        for name in before
    )


def _rows(index: tuple[Any, ...], rows: int) -> list[tuple[int, ...]]:
    """Spell out per-conv-group indices: one tuple for each row."""
    if index and not isinstance(index[0], tuple):
        return [index] * rows
    return [index[row * len(index) // rows] for row in range(rows)]


def _is_nested(index: tuple[Any, ...]) -> bool:
    return bool(index) and isinstance(index[0], tuple)


def sliced(tensor: Tensor, kept: Kept) -> Tensor:
    """Take the kept indices out of a tensor."""
    nested = {dim: index for dim, index in kept.items() if _is_nested(index)}
    plain = {dim: index for dim, index in kept.items() if dim not in nested}
    assert set(nested) <= {1}
    first = plain.pop(0, tuple(range(tensor.shape[0])))
    if nested:
        columns = _rows(nested[1], tensor.shape[0])
        tensor = torch.stack([tensor[row][list(columns[row])] for row in first])
    else:
        tensor = tensor[list(first)]
    for dim, index in plain.items():
        tensor = tensor.index_select(dim, torch.tensor(index, dtype=torch.long))
    return tensor


def masked(model: nn.Module, plan: Any) -> nn.Module:
    """Copy the model and zero every slice that the plan removes."""
    model = copy.deepcopy(model)
    found = tensors(model)
    with torch.no_grad():
        for name, kept in plan.kept.items():
            for dim, index in kept.items():
                _zero(found[name], dim, index)
    return model


def _zero(tensor: Tensor, dim: int, index: tuple[Any, ...]) -> None:
    if _is_nested(index):
        assert dim == 1
        for row, columns in enumerate(_rows(index, tensor.shape[0])):
            gone = sorted(set(range(tensor.shape[1])) - set(columns))
            tensor[row, gone] = 0
    else:
        gone = sorted(set(range(tensor.shape[dim])) - set(index))
        tensor.index_fill_(dim, torch.tensor(gone, dtype=torch.long), 0)


def check_pruned(
    model: nn.Module,
    plan: Any,
    pruned: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    tolerance: float = 1e-9,
) -> float:
    """Assert that `pruned` is the dense model sliced by `plan.kept` and computes what masking does.

    Every tensor must be the slice, bit for bit, and the outputs those of the masked model.
    """
    dense, small = tensors(model), tensors(pruned)
    assert small.keys() == dense.keys()
    for name, tensor in dense.items():
        wanted = sliced(tensor.detach(), plan.kept[name]) if name in plan.kept else tensor.detach()
        assert small[name].shape == wanted.shape, f"{name}: {small[name].shape}, {wanted.shape}"
        assert torch.equal(small[name].detach(), wanted), f"{name} is not the slice of the original"
    error = difference(outputs(pruned, args, kwargs), outputs(masked(model, plan), args, kwargs))
    assert error <= tolerance, f"pruned and masked differ by {error:.1e}"
    return error


Slot = tuple[str, int]
"""Channel `int` of module `str`, on the side the experiment names: (module, channel)."""


def poisoned_units(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[list[set[tuple[str, Slot]]], set[tuple[str, Slot]]]:
    """Find by experiment which channels hang together, and which must stay.

    A NaN in one output channel of a convolution or linear layer spreads through everything that
    works element by element and stops at the next contraction, whose output is put back to its
    clean value. Whoever sees a NaN at input channel q has its column q coupled to the source.

    Returns:
        The units: sets of ("out" | "in" | "norm", (module, channel)); and the slots that
        reach an output of the model or come from its inputs.
    """
    modules = {name: m for name, m in model.named_modules() if _is_contraction(m)}
    norms = {name: m for name, m in model.named_modules() if _is_channelwise(m)}
    union = _Union()
    stuck: set[tuple[str, Slot]] = set()
    for name, module in modules.items():
        channels = module.weight.shape[0]
        if isinstance(module, nn.ConvTranspose2d):
            channels = module.out_channels
        for channel in range(channels):
            slot = ("out", (name, channel))
            union.find(slot)
            seen, reached = _poison(model, modules, norms, name, channel, args, kwargs)
            for other in seen:
                union.join(slot, other)
            if reached:
                stuck.add(slot)
    return union.sets(), stuck


def _is_contraction(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear):
        return True
    convs = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d
    return isinstance(module, convs) and module.in_channels != module.groups


def _is_channelwise(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return True
    return isinstance(module, nn.Conv2d) and 1 < module.in_channels == module.groups


def _poison(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    norms: Mapping[str, nn.Module],
    source: str,
    channel: int,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> tuple[set[tuple[str, Slot]], bool]:
    seen: set[tuple[str, Slot]] = set()
    handles = []

    def dim(module: nn.Module, x: Tensor) -> int:
        return x.ndim - 1 if isinstance(module, nn.Linear) else 1

    def look(kind: str, name: str, module: nn.Module, x: Tensor) -> None:
        along = dim(module, x)
        bad = x.isnan().any(tuple(d for d in range(x.ndim) if d != along)) if x.ndim > 1 else x
        seen.update((kind, (name, int(q))) for q in bad.nonzero().flatten())

    def contraction(name: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
            look("in", name, module, inputs[0])
            out = module.forward(inputs[0].nan_to_num(0.0))
            if name == source:
                out.select(dim(module, out), channel).fill_(float("nan"))
            return out

        return hook

    def channelwise(name: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
            look("norm", name, module, inputs[0])

        return hook

    for name, module in modules.items():
        handles.append(module.register_forward_hook(contraction(name, module)))
    for name, module in norms.items():
        handles.append(module.register_forward_hook(channelwise(name, module)))
    try:
        reached = any(out.isnan().any().item() for out in outputs(model, args, kwargs))
    finally:
        for handle in handles:
            handle.remove()
    return seen, reached


class _Union:
    """Union-find."""

    def __init__(self) -> None:
        self.parent: dict[Any, Any] = {}

    def find(self, x: Any) -> Any:
        self.parent.setdefault(x, x)
        while self.parent[x] != x:
            self.parent[x] = self.parent[self.parent[x]]
            x = self.parent[x]
        return x

    def join(self, a: Any, b: Any) -> None:
        self.parent[self.find(a)] = self.find(b)

    def sets(self) -> list[set[Any]]:
        found: dict[Any, set[Any]] = {}
        for x in self.parent:
            found.setdefault(self.find(x), set()).add(x)
        return list(found.values())
