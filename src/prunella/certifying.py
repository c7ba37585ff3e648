"""The certificate: the pruned model computes what the masked model computes."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunella.coupling import couple
from prunella.errors import CertificateError
from prunella.examples import make
from prunella.graph import Graph
from prunella.masking import apply_mask
from prunella.modes import evaluating
from prunella.outputs import tensors_in
from prunella.patching import norms_over_kept
from prunella.plan import Groups, Plan
from prunella.precision import AtLeast
from prunella.replaying import Step, bind, fits, keeping, replay, run_node
from prunella.resizing import Resized, mask_from, resized
from prunella.slicing import take, zero_removed
from prunella.structure import tensors
from prunella.tracing import trace

_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3}
_HUGE = 1e30  # what stands for infinity, in masks: the limits of float32 and of float64 alike

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
Run = Callable[[nn.Module, Inputs], list[Tensor]]


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

    @property
    def holds(self) -> bool:
        """Say whether the models agree."""
        return self.error <= self.tolerance


def certify(
    model: nn.Module,
    pruned: nn.Module,
    plan: Plan,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    groups: Groups | None = None,
) -> Certificate:
    """Prove that `pruned` computes what `model` computes with all removed slices zero.

    Two comparisons, each on copies in float64 (float32 where the model does not run in float64):
    with the model's own weights on the given inputs, and with weights and statistics perturbed at
    random on random inputs. The second finds what the first cannot see in a model whose tensors are
    still at their initial zeros and ones.

    Where statistics are taken over channels (`plan.marked`) the masked model takes them over the
    kept ones. Then it is the captured graph that is run, once it has shown that it computes what
    the model computes.

    Args:
        model: The original model.
        pruned: The model `transform` made of it.
        plan: The plan it was made with.
        args: Positional inputs.
        kwargs: Keyword inputs.
        groups: The groups of the model; found again where they are needed and not given, or were
            found on inputs of other shapes.

    Raises:
        CertificateError: The outputs differ by more than the tolerance.
    """
    found = compare(model, pruned, plan, args, kwargs, groups)
    if not found.holds:
        raise CertificateError(
            f"the pruned `{type(model).__name__}` differs from the masked one by {found.error:.2g} "
            f"(relative, in {found.dtype}; allowed {found.tolerance:g}). The model was left "
            "untouched. Exclude modules until it agrees, and report this network"
        )
    return found


def compare(
    model: nn.Module,
    pruned: nn.Module,
    plan: Plan,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    groups: Groups | None = None,
) -> Certificate:
    """Compare as `certify` does, and return what was found, whether it holds or not.

    Raises:
        CertificateError: There is nothing to compare with: the masked model cannot be computed.
    """
    inputs = (args, dict(kwargs or {}))
    kept = _kept(model, plan, inputs, groups) if plan.marked else None
    case = _Case(model, pruned, plan, inputs, kept)
    try:
        return _compare(case, torch.float64)
    except (RuntimeError, TypeError):
        return _compare(case, torch.float32)


@dataclass(frozen=True, eq=False)
class _Case:
    """What is compared; `kept` only where the masked model must know what is kept."""

    model: nn.Module
    pruned: nn.Module
    plan: Plan
    inputs: Inputs
    kept: Resized | None


def _kept(model: nn.Module, plan: Plan, inputs: Inputs, groups: Groups | None) -> Resized:
    if groups is None or not (groups.graph.recorded or fits(groups.graph, *inputs)):
        groups = couple(trace(model, *inputs), form=plan.form)
    return resized(groups, mask_from(groups, plan))


def _compare(case: _Case, dtype: torch.dtype) -> Certificate:
    masked, small = (copy.deepcopy(m).to(dtype) for m in (case.model, case.pruned))
    with evaluating(masked), evaluating(small), torch.no_grad(), AtLeast(dtype):
        inputs = _cast(case.inputs, dtype)
        run = _masked_run(case.kept, masked, inputs, _TOLERANCES[dtype])
        apply_mask(masked, case.plan)
        errors = [_error(_outputs(run, masked, inputs), _outputs(_own, small, inputs))]
        example = case.kept.flow.groups.graph.example if case.kept else case.plan.example
        if example is not None:
            _perturb(case.model, masked, small, case.plan, dtype)
            inputs = _cast(make(example, 1, _device(case.model)), dtype)
            errors.append(_error(_outputs(run, masked, inputs), _outputs(_own, small, inputs)))
    name = str(dtype).removeprefix("torch.")
    return Certificate(max(errors), _TOLERANCES[dtype], name, len(errors))


def _masked_run(kept: Resized | None, dense: nn.Module, inputs: Inputs, tolerance: float) -> Run:
    """Choose how the masked model is computed, given the model while nothing is masked yet."""
    if kept is None:
        return _own
    graph = kept.flow.groups.graph
    if not graph.recorded:
        wanted = _outputs(_own, dense, inputs)
        try:
            replayed = _outputs(_replayed(graph), dense, inputs)
        except (AttributeError, RuntimeError):  # an operator that cannot be called by itself
            replayed = []
        if _error(wanted, replayed) <= tolerance:
            return _replayed(graph, keeping(kept))

    def patched(model: nn.Module, inputs: Inputs) -> list[Tensor]:
        with norms_over_kept(model, kept):
            return _own(model, inputs)

    return patched


def _own(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    return list(tensors_in(model(*inputs[0], **inputs[1])))


def _replayed(graph: Graph, step: Step = run_node) -> Run:
    def run(model: nn.Module, inputs: Inputs) -> list[Tensor]:
        return replay(graph, tensors(model), bind(graph, *inputs), step)

    return run


def _outputs(run: Run, model: nn.Module, inputs: Inputs) -> list[Tensor]:
    cuda = {t.device.index for t in tensors(model).values() if t.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(cuda)):  # the caller's random numbers go on as before
        torch.manual_seed(0)  # functional dropout and the like draw the same numbers
        return run(model, copy.deepcopy(inputs))


def _device(model: nn.Module) -> torch.device:
    return next((t.device for t in tensors(model).values()), torch.device("cpu"))


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


def _error(wanted: list[Tensor], found: list[Tensor]) -> float:
    """Return the largest relative error of any output; infinite where they are not comparable."""
    if [a.shape for a in wanted] != [b.shape for b in found]:
        return float("inf")
    return max((_difference(a, b) for a, b in zip(wanted, found, strict=True)), default=0.0)


def _difference(a: Tensor, b: Tensor) -> float:
    if not (a.is_floating_point() or a.is_complex()):  # indices, labels, masks
        return 0.0 if torch.equal(a, b) else float("inf")
    if not a.numel():
        return 0.0
    a, b = _real(a), _real(b)
    same = (a == b) | (a.isnan() & b.isnan())
    scale = a[a.isfinite()].abs().max().item() if bool(a.isfinite().any()) else 0.0
    gap = torch.where(same, 0.0, a - b).abs().nan_to_num(nan=float("inf")).max().item()
    return gap / max(scale, 1e-12)


def _real(tensor: Tensor) -> Tensor:
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    tensor = tensor.cpu().double()  # not every device has float64
    return torch.where(tensor.abs() > _HUGE, tensor.sign() * float("inf"), tensor)


def _cast(inputs: Any, dtype: torch.dtype) -> Any:
    if isinstance(inputs, Tensor):
        return inputs.to(dtype) if inputs.is_floating_point() else inputs
    if isinstance(inputs, tuple | list):
        return type(inputs)(_cast(item, dtype) for item in inputs)
    if isinstance(inputs, dict):
        return {key: _cast(value, dtype) for key, value in inputs.items()}
    return inputs
