"""Let the config of a pruned Hugging Face model say its new sizes.

Such a model is rebuilt from its config alone, so the config has to describe the pruned shapes.
Which of its numbers set which sizes is not looked up: each number is doubled in turn, the class is
built without memory, and the sizes that moved are those the number sets. New values follow from a
small least-squares problem in logarithms. Nothing found this way is trusted: the class built from
the new config must have every shape of the pruned model, and compute the same with its weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from prunella.configuring.blueprint import Blueprint, sizes_of
from prunella.configuring.calls import Call, calls_of
from prunella.configuring.numbers import is_count, leaves
from prunella.configuring.solving import agrees, derive, goal_of, solve, state
from prunella.errors import ConfigError
from prunella.model.examples import Arguments


def reconfigure(
    model: nn.Module, pruned: nn.Module, example: Arguments | None = None
) -> str | None:
    """Let `pruned.config` describe the pruned shapes, so that `from_pretrained` restores them.

    Concerns the model itself, or the outermost Hugging Face models it contains; a model without a
    config is left alone. Where no config describes the pruned shapes, `pruned.save_pretrained`
    raises a `ConfigError` that says why, instead of writing files nobody can load.

    Args:
        model: The model before pruning.
        pruned: What `transform` made of it; its config objects are changed in place.
        example: Inputs on which the model built from the new config is compared with `pruned`.
            Without them only shapes are.

    Returns:
        None where all configs fit, else why one does not, in one sentence.
    """
    paths = list(_configured(pruned))
    calls = calls_of(pruned, paths, example) if paths and example else {}
    reasons = []
    for path in paths:
        small = pruned.get_submodule(path)
        vars(small).pop("save_pretrained", None)  # of an earlier pruning that no config described
        reason = _refit(model.get_submodule(path), small, calls.get(path))
        if reason:
            vars(small)["save_pretrained"] = _Refusal(type(small).__name__, reason)
            reasons.append(reason)
    return "; ".join(reasons) or None


@dataclass(frozen=True)
class _Refusal:
    """Stands in for the `save_pretrained` of a model that no config describes."""

    model: str
    reason: str

    def __call__(self, *_: Any, **__: Any) -> None:
        raise ConfigError(
            f"`from_pretrained` could not restore this pruned `{self.model}`: {self.reason}. Save "
            "it with `prunella.save` and load it with `prunella.load`"
        )


def _configured(model: nn.Module) -> Iterator[str]:
    """Find the outermost modules that are saved with a config."""
    found: list[str] = []
    for name, module in model.named_modules():
        config = getattr(module, "config", None)
        inside = any(not outer or name.startswith(f"{outer}.") for outer in found)
        if not inside and all(
            callable(getattr(owner, method, None))
            for owner, method in (
                (config, "to_dict"),
                (type(config), "from_dict"),
                (module, "save_pretrained"),
            )
        ):
            found.append(name)
            yield name


def _refit(model: Any, pruned: Any, call: "Call | None") -> str | None:
    """Find and write the config of one pruned model; return why there is none."""
    blueprint = Blueprint(type(pruned), type(model.config))
    written: dict[str, Any] = model.config.to_dict()
    dense = blueprint.sizes(written)
    if dense is None:
        return f"its class cannot be built from its config alone ({blueprint.failure})"
    goal = goal_of(dense, sizes_of(pruned))
    if agrees(dense, goal):
        return None
    found, reason = solve(blueprint, written, goal)
    if not found:
        stated = state(blueprint, written, dense, goal)
        found, reason = solve(blueprint, stated, goal) if stated != written else (found, reason)
    for numbers in found:
        derived = derive(blueprint, written, numbers)
        rebuilt = blueprint.with_tensors_of(pruned, derived)
        if rebuilt is None:
            reason = f"the model that fits does not load ({blueprint.failure})"
        elif call is not None and (difference := call.difference(rebuilt)):
            reason = difference
        else:
            _write(pruned, rebuilt)
            return None
    return reason


def _write(pruned: nn.Module, rebuilt: nn.Module) -> None:
    """Copy what changed into every config object of the pruned model.

    In place, as modules hold on to them; some hold copies of their own (encoder and decoder).
    """
    done: set[int] = set()
    for path, module in rebuilt.named_modules():
        config = getattr(module, "config", None)
        own = getattr(pruned.get_submodule(path), "config", None)
        if own is not None and callable(getattr(config, "to_dict", None)):
            _copy_numbers(own, config, done)


def _copy_numbers(own: Any, config: Any, done: set[int]) -> None:
    if id(own) in done:
        return
    done.add(id(own))
    for key, value in config.to_dict().items():
        new, old = getattr(config, key, None), getattr(own, key, None)
        if callable(getattr(new, "to_dict", None)):
            _copy_numbers(old, new, done)
        elif old != new and any(is_count(n) for _, n in leaves(value)):
            setattr(own, key, new)
