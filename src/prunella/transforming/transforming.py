"""The pruned model: the user's own class, smaller. The only file that changes shapes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from prunella.certifying import Certificate, certifying
from prunella.configuring import reconfigure
from prunella.coupling import couple
from prunella.errors import ConfigError, TransformError
from prunella.masking import check_digest
from prunella.masking.rescaling import keep_scales
from prunella.masking.slicing import cut
from prunella.masking.spectral import estimates_cut, settle
from prunella.model.blame import first_line, own_line
from prunella.model.carrying import carry
from prunella.model.examples import Arguments, make
from prunella.model.modes import copied, evaluating, forget
from prunella.model.structure import device_of, tensors
from prunella.plan import Groups, Plan
from prunella.rewriting import rewritten
from prunella.tracing import Inputs, called_with, trace
from prunella.tracing.capturing import untouched, wrong_input


def transform(
    model: nn.Module,
    plan: Plan,
    example_inputs: Inputs | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    certify: bool = True,
) -> nn.Module:
    """Return a physically smaller copy of the model.

    The copy is of the user's own class; its parameters are new leaves with the same
    `requires_grad`. It proves itself: on the example inputs and on random ones it must compute
    what the masked model computes.

    Args:
        model: The model the plan was made for; left untouched.
        plan: What to keep.
        example_inputs: Inputs for the proof; by default ones like those the model was traced with.
        example_kwargs: Keyword arguments of the same.
        certify: Whether to run the proof.

    Raises:
        PlanMismatchError: The plan is for another model.
        TransformError: The pruned model does not run.
        CertificateError: The pruned model computes something else than the masked one.
    """
    check_digest(model, plan)
    if not certify:
        known = None if plan.example is None else make(plan.example, 0, device_of(model))
        plan = with_scales(model, plan, None, known)
        pruned = smaller(model, plan)
        reconfigure(model, pruned, known)
        return pruned
    args, kwargs = example_of(model, plan, example_inputs, example_kwargs)
    return transform_and_prove(model, plan, args, kwargs)[0]


def transform_and_prove(
    model: nn.Module,
    plan: Plan,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    groups: Groups | None = None,
) -> tuple[nn.Module, Certificate]:
    """Transform, and return the certificate beside the pruned model.

    `groups`, where they are at hand, spare finding them again.
    """
    check_digest(model, plan)
    plan = with_scales(model, plan, groups, (args, kwargs))
    pruned = runnable(model, plan, groups, (args, kwargs))
    proof = certifying.certify(model, pruned, plan, args, kwargs, groups)
    reconfigure(model, pruned, (args, kwargs))
    return pruned, proof


def with_scales(
    model: nn.Module, plan: Plan, groups: Groups | None, inputs: Arguments | None
) -> Plan:
    """Return the plan with the factors that keep the scale of attention, if nobody looked yet.

    A rewritten graph needs none: it spells the old scale out.
    """
    if plan.factors is not None or plan.form == "graph" or not plan.marked or inputs is None:
        return plan
    if groups is None:
        groups = couple(trace(model, *inputs), form=plan.form, heads=plan.heads)
    return keep_scales(model, plan, groups, inputs, lambda plan: shrink(model, plan))


def smaller(
    model: nn.Module, plan: Plan, groups: Groups | None = None, inputs: Arguments | None = None
) -> nn.Module:
    """Make the pruned model in the form that the plan asks for, without proof."""
    if plan.form == "graph":
        return rewritten(model, plan, groups, inputs)
    return shrink(model, plan)


def runnable(model: nn.Module, plan: Plan, groups: Groups | None, inputs: Arguments) -> nn.Module:
    """Make the pruned model without proof, but see that it runs.

    Raises:
        TransformError: It does not.
    """
    pruned = smaller(model, plan, groups, inputs)
    _run(model, pruned, *inputs)
    return pruned


def shrink(model: nn.Module, plan: Plan) -> nn.Module:
    """Slice a copy of the model as the plan says: the user's own class, without proof."""
    # Every mention of a tensor gets its slice, and a large model is not copied whole first.
    pruned = copied(
        model,
        {
            id(tensor): _like(tensor, cut(tensor.detach(), plan, name))
            for name, tensor in tensors(model).items()
            if name in plan.kept
        },
    )
    settle(tensors(pruned), estimates_cut(pruned, plan.kept))
    for name, attributes in plan.attributes.items():  # by whatever name a shared module was called
        for attribute, value in attributes.items():
            _set(pruned.get_submodule(name), attribute, value)
    for module in pruned.modules():
        _follow_shapes(module)
    forget(pruned)
    carry(pruned, model, plan)
    return pruned


def _like(old: Tensor, smaller: Tensor) -> Tensor:
    """Make a parameter where the old tensor is one."""
    is_parameter = isinstance(old, nn.Parameter)
    return nn.Parameter(smaller, requires_grad=old.requires_grad) if is_parameter else smaller


def _set(holder: Any, attribute: str, value: float) -> None:
    """Set `num_heads`, `normalized_shape[0]` or `config.hidden_size`."""
    name, _, rest = attribute.partition(".")
    if rest:
        _set(getattr(holder, name), rest, value)
        return
    name, _, index = name.partition("[")
    if index:
        items = list(getattr(holder, name))
        items[int(index.removesuffix("]"))] = value
        value = type(getattr(holder, name))(items)
    setattr(holder, name, value)


def _follow_shapes(module: nn.Module) -> None:
    """Let the attributes of a standard module say what its tensors are now."""
    if isinstance(module, _ConvNd):
        rows, columns, *kernel = module.weight.shape
        module.kernel_size = tuple(kernel)
        ins, outs = (rows, columns) if module.transposed else (columns, rows)
        module.in_channels = ins if module.transposed else ins * module.groups
        module.out_channels = outs * module.groups if module.transposed else outs
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _NormBase):
        sized = module.weight if module.weight is not None else module.running_mean
        module.num_features = module.num_features if sized is None else len(sized)
    elif isinstance(module, nn.MultiheadAttention):
        module.head_dim = module.embed_dim // module.num_heads
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()
    elif isinstance(module, nn.RNNBase):
        module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
        module.input_size = getattr(module, module._flat_weights_names[0]).shape[1]
    elif isinstance(module, nn.RNNCellBase):
        module.input_size = module.weight_ih.shape[1]
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape


def example_of(
    model: nn.Module,
    plan: Plan,
    example_inputs: Inputs | None,
    example_kwargs: Mapping[str, Any] | None,
) -> Arguments:
    """Return the given inputs, or make some like those the plan's model was traced with."""
    if example_inputs is not None or example_kwargs is not None:
        return called_with(() if example_inputs is None else example_inputs, example_kwargs)
    if plan.example is None:
        raise ConfigError(
            "the plan does not say what inputs the model takes (they are of a type that cannot be "
            "described); pass `example_inputs`"
        )
    return make(plan.example, 0, device_of(model))


def _run(
    model: nn.Module, pruned: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    try:
        with evaluating(pruned), untouched(pruned), torch.no_grad():
            pruned(*args, **kwargs)
    except Exception as error:
        raise (
            wrong_input(model, args, kwargs)
            or TransformError(
                f"the pruned `{type(pruned).__name__}` does not run{own_line(error)}: "
                f"{type(error).__name__}: {first_line(error)}. A size is written into its code; "
                "compute it from the tensors' shapes, or exclude the modules around it. The model "
                "was left untouched"
            )
        ) from error
