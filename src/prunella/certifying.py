"""The certificate: the pruned model computes what the masked model computes."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunella.errors import CertificateError
from prunella.examples import make
from prunella.masking import apply_mask
from prunella.modes import evaluating
from prunella.outputs import tensors_in
from prunella.plan import Plan
from prunella.slicing import take, zero_removed
from prunella.structure import tensors

_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3}


@dataclass(frozen=True, slots=True)
class Certificate:
    """Proof that a pruned model equals the masked one.

    Attributes:
        error: Largest difference of any output, relative to the largest output.
        tolerance: What was allowed.
        dtype: Precision of the comparison.
        runs: How many comparisons were made.
    """

    error: float
    tolerance: float
    dtype: str
    runs: int


def certify(
    model: nn.Module,
    pruned: nn.Module,
    plan: Plan,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
) -> Certificate:
    """Prove that `pruned` computes what `model` computes with all removed slices zero.

    Two comparisons, each on copies in float64 (float32 where the model does not run in float64):
    with the model's own weights on the given inputs, and with weights and statistics perturbed at
    random on random inputs. The second finds what the first cannot see in a model whose tensors are
    still at their initial zeros and ones.

    Args:
        model: The original model.
        pruned: The model `transform` made of it.
        plan: The plan it was made with.
        args: Positional inputs.
        kwargs: Keyword inputs.

    Raises:
        CertificateError: The outputs differ by more than the tolerance.
    """
    inputs = (args, dict(kwargs or {}))
    try:
        return _certify(model, pruned, plan, inputs, torch.float64)
    except (RuntimeError, TypeError):
        return _certify(model, pruned, plan, inputs, torch.float32)


def _certify(
    model: nn.Module, pruned: nn.Module, plan: Plan, inputs: Any, dtype: torch.dtype
) -> Certificate:
    masked, small = (copy.deepcopy(m).to(dtype) for m in (model, pruned))
    apply_mask(masked, plan)
    with evaluating(masked), evaluating(small), torch.no_grad():
        errors = [_compare(masked, small, inputs, dtype)]
        if plan.example is not None:
            device = next((t.device for t in tensors(model).values()), torch.device("cpu"))
            _perturb(model, masked, small, plan, dtype)
            errors.append(_compare(masked, small, make(plan.example, 1, device), dtype))
    error, tolerance = max(errors), _TOLERANCES[dtype]
    if not error <= tolerance:
        raise CertificateError(
            f"the pruned `{type(model).__name__}` differs from the masked one by {error:.2g} "
            f"(relative, in {dtype}; allowed {tolerance:g}). The model was left untouched. Exclude "
            "modules until it agrees, and report this network"
        )
    return Certificate(error, tolerance, str(dtype).removeprefix("torch."), len(errors))


def _perturb(
    model: nn.Module, masked: nn.Module, small: nn.Module, plan: Plan, dtype: torch.dtype
) -> None:
    """Move every float tensor a little at random, the same in both; one at a time, for memory.

    What is positive (a variance) stays positive.
    """
    generator = torch.Generator().manual_seed(2)
    wide, sliced = tensors(masked), tensors(small)
    for name, original in tensors(model).items():
        if original.is_floating_point():
            tensor = original.detach().to(dtype)
            noise = torch.randn(tensor.shape, generator=generator).to(tensor)
            tensor = tensor * (0.1 * noise).exp()
            if not bool((tensor > 0).all()):
                tensor = tensor + 0.02 * noise
            sliced[name].copy_(take(tensor, plan.kept.get(name, {})))
            wide[name].copy_(tensor)
            zero_removed(wide[name], plan.kept.get(name, {}))


def _compare(masked: nn.Module, small: nn.Module, inputs: Any, dtype: torch.dtype) -> float:
    args, kwargs = _cast(inputs, dtype)
    outputs = []
    cuda = {t.device.index for t in tensors(masked).values() if t.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(cuda)):  # the caller's random numbers go on as before
        for model in (masked, small):
            torch.manual_seed(0)  # functional dropout and the like draw the same numbers
            outputs.append(list(tensors_in(model(*copy.deepcopy(args), **copy.deepcopy(kwargs)))))
    if [a.shape for a in outputs[0]] != [b.shape for b in outputs[1]]:
        return float("inf")
    return max((_difference(a, b) for a, b in zip(*outputs, strict=True)), default=0.0)


def _difference(a: Tensor, b: Tensor) -> float:
    if not a.numel():
        return 0.0
    a, b = a.cpu().double(), b.cpu().double()  # not every device has float64
    same = (a == b) | (a.isnan() & b.isnan())
    scale = a[a.isfinite()].abs().max().item() if bool(a.isfinite().any()) else 0.0
    gap = torch.where(same, 0.0, a - b).abs().nan_to_num(nan=float("inf")).max().item()
    return gap / max(scale, 1e-12)


def _cast(inputs: Any, dtype: torch.dtype) -> Any:
    if isinstance(inputs, Tensor):
        return inputs.to(dtype) if inputs.is_floating_point() else inputs
    if isinstance(inputs, tuple | list):
        return type(inputs)(_cast(item, dtype) for item in inputs)
    if isinstance(inputs, dict):
        return {key: _cast(value, dtype) for key, value in inputs.items()}
    return inputs
