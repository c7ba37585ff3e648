"""What an optimizer remembers of past gradients, by parameter, and how a prune cuts it."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prunella.errors import ConfigError
from prunella.masking.slicing import take
from prunella.model.structure import hashed
from prunella.plan import Plan

Moments = Mapping[str, Mapping[str, Tensor]]
"""By a parameter's name and the optimizer's word (`momentum_buffer`, `exp_avg`, `step`, ...)."""

_KINDS = {"sgd": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}

_SQUARED = frozenset(("exp_avg_sq", "max_exp_avg_sq"))


def cut_moments(moments: Moments, plan: Plan) -> dict[str, dict[str, Tensor]]:
    """Return what is remembered of the slices that a plan keeps.

    Where the plan multiplies a slice by a factor, its gradient is divided by it.

    Args:
        moments: Of the model the plan was made for.
        plan: Its next prune.
    """
    return {
        name: {key: _cut(value, key, plan, name) for key, value in values.items()}
        for name, values in moments.items()
    }


def _cut(value: Tensor, key: str, plan: Plan, name: str) -> Tensor:
    if value.ndim == 0:  # a count of steps
        return value.clone()
    made = take(value, plan.kept.get(name, {}))
    for dim, factors in (plan.factors or {}).get(name, {}).items():
        wide = [-1 if d == dim else 1 for d in range(made.ndim)]
        scale = torch.tensor(factors, dtype=made.dtype, device=made.device).view(wide)
        made /= scale.square() if key in _SQUARED else scale
    return made


def moments_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """Copy what an optimizer remembers of a model's parameters, to the CPU."""
    return {
        name: {
            key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for key, value in optimizer.state[parameter].items()
            if isinstance(value, Tensor)
        }
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }


def strangers(moments: Moments, optimizer: str) -> str:
    """Say which of the moments are none that an optimizer ("sgd", "adamw") has; "" for none."""
    words = {key for values in moments.values() for key in values}
    return ", ".join(f"`{word}`" for word in sorted(words - _KINDS[optimizer]))


def remember(model: nn.Module, optimizer: torch.optim.Optimizer, moments: Moments) -> None:
    """Give an optimizer the moments of a model's parameters; those that have none begin anew.

    Raises:
        ConfigError: They are of another model.
    """
    parameters = dict(model.named_parameters())
    for name, values in moments.items():
        if name not in parameters:
            raise ConfigError(f"the optimizer's state is of another model: it has no `{name}`")
        for key, value in values.items():
            if value.ndim and value.shape != parameters[name].shape:
                raise ConfigError(
                    f"the optimizer's state is of another model: its {key} of `{name}` has shape "
                    f"{tuple(value.shape)}, the parameter {tuple(parameters[name].shape)}"
                )
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = {parameter: name for name, parameter in parameters.items()}
    # By the optimizer's own way in, which knows the types and places it wants; it does not copy.
    state = {
        index: {key: value.clone() for key, value in moments[names[parameter]].items()}
        for index, parameter in enumerate(trained)
        if names[parameter] in moments
    }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def digest_moments(moments: Moments) -> str:
    """Hash names and values."""
    return hashed(_flat(moments))


def write_moments(moments: Moments, path: Path) -> None:
    """Write a file of tensors, never a pickle."""
    save_file(_flat(moments), path)


def read_moments(path: Path) -> dict[str, dict[str, Tensor]]:
    """Read a file that `write_moments` wrote."""
    moments: dict[str, dict[str, Tensor]] = {}
    for name, value in load_file(path).items():
        parameter, _, key = name.rpartition("/")
        moments.setdefault(parameter, {})[key] = value
    return moments


def _flat(moments: Moments) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value for name, values in moments.items() for key, value in values.items()
    }
