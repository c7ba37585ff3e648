"""The certificate: the pruned model computes what the masked model computes."""

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from prunella.certifying.deciding import Deciding, Decisions, Following
from prunella.certifying.precision import AtLeast
from prunella.coupling import couple
from prunella.coupling.resizing import Resized, mask_from, resized
from prunella.errors import CertificateError, ConfigError, PrunellaError
from prunella.graph import Graph
from prunella.masking import apply_mask
from prunella.masking.slicing import cut
from prunella.masking.spectral import estimates_cut, settle
from prunella.model.examples import make
from prunella.model.modes import copied, evaluating, forget, unfused_attention
from prunella.model.outputs import tensors_in
from prunella.model.structure import check_numbers, device_of, tensors
from prunella.plan import Groups, Plan, check_kind
from prunella.replaying import Step, bind, fits, keeping, replay, run_node
from prunella.replaying.patching import norms_over_kept
from prunella.tracing import called_with, trace
from prunella.tracing.capturing import wrong_input

_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3}
# In which precision, and whether also where the model's code asks for less: the first that works.
_WAYS = ((torch.float64, True), (torch.float64, False), (torch.float32, False))
_MOST = 1e-6
_DRAWS, _TIMES = 3, 4
_MOST_NAN = 0.5  # of all that is returned; with more it says nothing
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
        runs: How many comparisons were made. One where hardly a number was finite is none.
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
    args: Tensor | tuple[Any, ...],
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
        args: A tensor, or a tuple of positional inputs.
        kwargs: Keyword inputs.
        groups: The groups of the model; found again where they are needed and not given, or were
            found on inputs of other shapes.

    Raises:
        CertificateError: The outputs differ by more than the tolerance.
        ConfigError: What the dense model returns on the inputs is mostly NaN or infinite, and so
            it is on random ones: there is nothing to compare.
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
    args: Tensor | tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    groups: Groups | None = None,
) -> Certificate:
    """Compare as `certify` does, and return what was found, whether it holds or not.

    Raises:
        CertificateError: There is nothing to compare with: the masked model cannot be computed,
            or what it returns is mostly NaN.
        ConfigError: So is what the dense model returns.
    """
    for proving in (model, pruned):
        check_numbers(proving, "the proof (`certify`)")
    check_kind(plan, Plan)
    inputs = called_with(args, kwargs)
    if not plan.marked:
        found = _in_some_precision(_Case(model, pruned, plan, inputs, None, *_WAYS[0]))
        if not math.isinf(found.error):
            return found
        # A masked channel that is divided by is not nothing, but NaN: only the graph leaves it out.
    kept = _kept(model, plan, inputs, groups)
    return _in_some_precision(_Case(model, pruned, plan, inputs, kept, *_WAYS[0]))


@dataclass(frozen=True, eq=False)
class _Case:
    """What is compared, and how; `kept` only where the masked model must know what is kept."""

    model: nn.Module
    pruned: nn.Module
    plan: Plan
    inputs: Inputs
    kept: Resized | None
    dtype: torch.dtype
    everywhere: bool

    def copy(self, model: nn.Module) -> nn.Module:
        # Not `to(dtype)`, which leaves the real part of what is complex.
        fresh = copied(model)
        fresh._apply(lambda tensor: _raised(tensor, self.dtype))
        forget(fresh)
        return fresh

    def outputs(self, run: Run, model: nn.Module, inputs: Inputs) -> list[Tensor]:
        """Run a model in this precision."""
        inputs = _cast(copy.deepcopy(inputs), self.dtype)
        mode = AtLeast(self.dtype) if self.everywhere else nullcontext()
        with evaluating(model), unfused_attention(), torch.no_grad(), mode:
            torch.manual_seed(0)  # functional dropout and the like draw the same numbers
            return run(model, inputs)


def _in_some_precision(case: _Case) -> Certificate:
    for dtype, everywhere in _WAYS[:-1]:
        try:
            return _compare(replace(case, dtype=dtype, everywhere=everywhere))
        except (RuntimeError, TypeError):
            continue
    dtype, everywhere = _WAYS[-1]
    try:
        return _compare(replace(case, dtype=dtype, everywhere=everywhere))
    except (RuntimeError, TypeError) as error:
        problem = wrong_input(case.model, *case.inputs)
        if problem is None:
            raise
        raise problem from error


def _kept(model: nn.Module, plan: Plan, inputs: Inputs, groups: Groups | None) -> Resized:
    if groups is None or not (groups.graph.recorded or fits(groups.graph, *inputs)):
        groups = couple(trace(model, *inputs), form=plan.form, heads=plan.heads)
    return resized(groups, mask_from(groups, plan))


def _compare(case: _Case) -> Certificate:
    run = _masked_run(case)
    found = [_compared(case, run, case.inputs, perturbed=False)]
    example = case.kept.flow.groups.graph.example if case.kept else case.plan.example
    if example is not None and found[0].holds:
        found.append(_perturbed(case, run, make(example, 1, device_of(case.model))))
    telling = [each for each in found if each.tells or not each.holds]
    if not telling:
        raise _nothing_proven(case)
    worst = max(telling, key=lambda each: each.error / each.allowed)
    kind = str(case.dtype).removeprefix("torch.")
    return Certificate(worst.error, worst.allowed, kind, len(telling))


def _nothing_proven(case: _Case) -> PrunellaError:
    name = type(case.model).__name__
    if _tells(case.outputs(_own, case.copy(case.model), case.inputs)):
        return CertificateError(
            f"nothing is proven of the pruned `{name}`: what the masked model returns on the "
            "example inputs is mostly NaN or infinite, and the dense model's is not: something "
            "divides by what is removed. Exclude modules until it does not"
        )
    return ConfigError(
        f"nothing can be proven of the pruned `{name}`: what the dense model itself returns on the "
        "example inputs is mostly NaN or infinite, so there is nothing to compare. Give "
        "`example_inputs` of the range that it is for, and look for weights that are not finite"
    )


@dataclass(frozen=True, slots=True)
class _Compared:
    """The error on some inputs, what is allowed, and whether there were numbers to compare."""

    error: float
    allowed: float
    tells: bool

    @property
    def holds(self) -> bool:
        return self.error <= self.allowed


def _compared(case: _Case, run: Run, inputs: Inputs, *, perturbed: bool) -> _Compared:
    """Compare once, on fresh copies: a model may have remembered what it computed before."""
    masked, small = case.copy(case.model), case.copy(case.pruned)
    if perturbed:
        _perturb(case, masked, small, inputs)
    else:
        _unround(case, masked, small)
    apply_mask(masked, case.plan)
    _settle(case, masked, small, anyway=perturbed)
    if case.kept is not None and not case.kept.flow.groups.graph.recorded:
        wanted = case.outputs(run, masked, inputs)
        error = _error(wanted, case.outputs(_own, small, inputs))
        allowed = _allowed(case, error, wanted, run, inputs, masked)
        return _Compared(error, allowed, _tells(wanted))
    decisions = Decisions()  # the same code on both sides, so decisions pair up
    with Deciding(decisions):
        wanted = case.outputs(run, masked, inputs)
    with Following(decisions, _TOLERANCES[case.dtype]):
        found = case.outputs(_own, small, inputs)
    error = max(_error(wanted, found), decisions.gap)
    allowed = _allowed(case, error, wanted, run, inputs, masked)
    return _Compared(error, allowed, _tells(wanted))


def _perturbed(case: _Case, run: Run, inputs: Inputs) -> _Compared:
    """Compare with perturbed weights: on random inputs, or the given ones if no others will do.

    Not any numbers are where bags of words begin, or how long sequences are.
    """
    try:
        return _compared(case, run, inputs, perturbed=True)
    except Exception:
        if _takes(case, inputs):
            raise
    return _compared(case, run, case.inputs, perturbed=True)


def _takes(case: _Case, inputs: Inputs) -> bool:
    """Say whether the dense model runs on some inputs."""
    try:
        case.outputs(_own, case.copy(case.model), inputs)
    except Exception:  # noqa: BLE001 - whatever the model's own code raises
        return False
    return True


def _allowed(
    case: _Case, error: float, wanted: list[Tensor], run: Run, inputs: Inputs, masked: nn.Module
) -> float:
    """Return the tolerance: more where the masked model itself makes much of rounding.

    A thousand layers with random weights may blow a rounding error up to more than is allowed. So
    what is over the limit is put beside what the same model makes of inputs that differ in the
    fourteenth digit: a few times as much as the most of some draws, for rounding comes in at every
    layer and not at the input alone; never more than `_MOST`, far below what a wrong channel does.
    """
    limit = _TOLERANCES[case.dtype]
    if not limit < error <= _MOST or case.dtype != torch.float64:
        return limit
    given = _cast(inputs, case.dtype)
    moved = [
        _error(wanted, case.outputs(run, masked, _jittered(given, seed))) for seed in range(_DRAWS)
    ]
    return max(limit, min(_MOST, _TIMES * max(moved)))


def _jittered(inputs: Any, seed: int) -> Any:
    if isinstance(inputs, Tensor) and inputs.is_floating_point():
        noise = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(seed))
        return inputs * (1 + 1e-14 * noise.to(inputs))
    if isinstance(inputs, tuple | list):
        return type(inputs)(_jittered(item, seed) for item in inputs)
    if isinstance(inputs, dict):
        return {key: _jittered(value, seed) for key, value in inputs.items()}
    return inputs


def _masked_run(case: _Case) -> Run:
    """Choose how the masked model is computed."""
    kept = case.kept
    if kept is None:
        return _own
    graph = kept.flow.groups.graph
    if not graph.recorded:
        dense = case.copy(case.model)
        wanted = case.outputs(_own, dense, case.inputs)
        try:
            found = case.outputs(_replayed(graph), dense, case.inputs)
        except (AttributeError, RuntimeError):  # an operator that cannot be called by itself
            found = []
        if _error(wanted, found) <= _TOLERANCES[case.dtype]:
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


@torch.no_grad()
def _unround(case: _Case, masked: nn.Module, small: nn.Module) -> None:
    """Give what was multiplied by a factor the digits that the model's own precision cut off.

    Only where it is right but for these: else it stays as it is, and the outputs will differ.
    """
    wide, sliced, own = tensors(masked), tensors(small), tensors(case.pruned)
    for name in case.plan.factors or {}:
        exact = cut(wide[name], case.plan, name)
        slack = 2 * torch.finfo(own[name].dtype).eps
        if exact.shape == sliced[name].shape and bool(
            ((sliced[name] - exact).abs() <= slack * exact.abs()).all()
        ):
            sliced[name].copy_(exact)


@torch.no_grad()
def _settle(case: _Case, masked: nn.Module, small: nn.Module, *, anyway: bool) -> None:
    """Let the masked model look for the directions of its spectral norms, in this precision.

    The pruned model gets the digits of what it found itself, or what it never looked for.
    """
    estimates = estimates_cut(case.model, case.plan.kept)
    wide, sliced, own = tensors(masked), tensors(small), tensors(case.pruned)
    settle(wide, estimates)
    for name in (name for each in estimates for name in (each.left, each.right) if name in sliced):
        exact = cut(wide[name], case.plan, name)
        slack = torch.finfo(own[name].dtype).eps ** 0.5
        if anyway or bool(((sliced[name] - exact).abs() <= slack).all()):
            sliced[name].copy_(exact)


@torch.no_grad()
def _perturb(case: _Case, masked: nn.Module, small: nn.Module, inputs: Inputs) -> None:
    """Move every float tensor a little at random, the same in both models.

    What is positive (a variance) stays so, whatever repair left in channels that are removed. What
    would let a signal die, so that nothing more is seen of what it went through, is set right: a
    tiny layer scale becomes a tenth, and batch norms expect signals as large as they are.
    """
    generator = torch.Generator().manual_seed(2)
    wide, sliced = tensors(masked), tensors(small)
    for name, tensor in wide.items():
        if tensor.is_floating_point() and tensor.numel():
            noise = torch.randn(tensor.shape, generator=generator).to(tensor)
            largest = tensor.abs().max().item()
            tensor.mul_((0.1 * noise).exp_()).mul_(0.1 / largest if 0 < largest < 0.01 else 1)
            if not bool((cut(tensor, case.plan, name) > 0).all()):
                tensor.add_(noise, alpha=0.02)
    norms = [m for m in masked.modules() if isinstance(m, _BatchNorm) and m.running_var is not None]
    expected: dict[Any, tuple[Tensor, Tensor]] = {}
    hooks = [norm.register_forward_pre_hook(partial(_expect, expected)) for norm in norms]
    if norms:
        case.outputs(_own, masked, inputs)
    for hook in hooks:
        hook.remove()
    for norm, (mean, variance) in expected.items():  # the run left them as they were
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
    for name, tensor in wide.items():
        if tensor.is_floating_point() and name in sliced:  # a rewritten model lacks what is unused
            sliced[name].copy_(cut(tensor, case.plan, name))


def _expect(expected: dict[Any, tuple[Tensor, Tensor]], norm: Any, args: tuple[Any, ...]) -> None:
    """Let a batch norm divide by the size of what comes in."""
    x = args[0]
    others = [dim for dim in range(x.ndim) if dim != 1]
    power = x.pow(2).mean(others)
    norm.running_mean.copy_(0.5 * x.mean(others))
    norm.running_var.copy_(torch.where(power > 0, power, norm.running_var))
    expected[norm] = norm.running_mean.clone(), norm.running_var.clone()


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


def _tells(outputs: list[Tensor]) -> bool:
    """Say whether outputs hold numbers by which two models can be told apart.

    NaN is equal to NaN here, and so is infinity: masks hold them, and single results of samples
    that something is undefined for. Where most is NaN, or nothing finite, any model does the same.
    """
    reals = [_real(t) for t in outputs if t.is_floating_point() or t.is_complex()]
    whole = torch.cat([tensor.reshape(-1) for tensor in reals]) if reals else torch.empty(0)
    if not whole.numel():
        return True  # whole numbers, or nothing at all
    return bool(whole.isfinite().any()) and float(whole.isnan().double().mean()) <= _MOST_NAN


def _real(tensor: Tensor) -> Tensor:
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    tensor = tensor.cpu().double()  # not every device has float64
    return torch.where(tensor.abs() > _HUGE, tensor.sign() * float("inf"), tensor)


def _cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    found: Inputs = pytree.tree_map_only(Tensor, lambda item: _raised(item, dtype), inputs)
    return found


def _raised(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.is_complex():
        return tensor.to(dtype.to_complex())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
