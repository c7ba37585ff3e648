"""Save and load pruned models: a plan and tensors, no pickle, no code."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from prunella.configuring import reconfigure
from prunella.errors import PlanMismatchError, WorkspaceError
from prunella.files import located, replacing
from prunella.masking import check_digest
from prunella.model.carrying import plan_of
from prunella.model.structure import check_numbers, fleeting, tensors
from prunella.plan import Plan, check_kind
from prunella.tracing import Inputs
from prunella.transforming import example_of, smaller

_PLAN, _WEIGHTS, _SUMS = "plan.json", "model.safetensors", "sha256.json"


def save(model: nn.Module, folder: str | Path, plan: Plan | None = None) -> None:
    """Save a pruned model as `plan.json` and `model.safetensors` in a folder.

    Args:
        model: A model made by `transform` or `prune`, possibly finetuned since.
        folder: Where to; made if need be.
        plan: The plan from the original model; by default the one the model carries.

    Raises:
        PlanMismatchError: The model carries no plan.
        ConfigError: The model is on the meta device.
        WorkspaceError: The files cannot be written; older ones are intact.
    """
    plan = plan or plan_of(model)
    if plan is None:
        raise PlanMismatchError(
            f"this `{type(model).__name__}` was not pruned here, so it carries no plan; pass the "
            "plan that led to it as `plan=`"
        )
    check_kind(plan, Plan)
    check_numbers(model, "saving")
    folder = located(folder)
    state = {name: tensor.detach().contiguous() for name, tensor in tensors(model).items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:  # all are written before the first takes its place
            fresh = {
                name: stack.enter_context(replacing(folder / name))
                for name in (_PLAN, _WEIGHTS, _SUMS)
            }
            fresh[_PLAN].write_text(plan.to_json())
            save_file(state, fresh[_WEIGHTS])
            fresh[_SUMS].write_text(json.dumps({n: _sum(fresh[n]) for n in (_PLAN, _WEIGHTS)}))
    except (OSError, SafetensorError) as error:
        raise WorkspaceError(
            f"the model could not be saved in `{folder}`: {error}. What was there before is "
            "intact; free some space or choose another folder"
        ) from error


def load(
    folder: str | Path,
    model: nn.Module,
    example_inputs: Inputs | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Load a pruned model in the form it was saved in.

    Args:
        folder: Where `save` put it.
        model: A fresh instance of the original model, as before pruning; left untouched.
        example_inputs: Inputs to capture the model with, where a rewritten one was saved; by
            default ones like those it was pruned with.
        example_kwargs: Keyword arguments of the same.

    Returns:
        The pruned model with the saved tensors: of the user's own class, or rewritten from it.

    Raises:
        WorkspaceError: A file is missing, truncated or was changed.
        PlanMismatchError: The fresh model has another structure than the original.
        ConfigError: A rewritten model was saved, and nothing says what inputs the original takes.
    """
    folder = located(folder)
    for name, expected in _sums(folder).items():
        if _sum(folder / name) != expected:
            raise WorkspaceError(
                f"`{folder / name}` is damaged: its checksum is not the one recorded when it was "
                "saved. Save the model again, or restore the file from a copy"
            )
    plan = Plan.from_json((folder / _PLAN).read_text())
    check_digest(model, plan)
    rewrites = plan.form == "graph"
    inputs = example_of(model, plan, example_inputs, example_kwargs) if rewrites else None
    pruned = smaller(model, plan, inputs=inputs)
    reconfigure(model, pruned)
    state = load_file(folder / _WEIGHTS)
    found = tensors(pruned)
    gone = fleeting(pruned)
    saved, made = (
        {(n, t.shape) for n, t in held.items() if n not in gone} for held in (state, found)
    )
    if saved != made:
        raise PlanMismatchError(
            f"`{folder / _WEIGHTS}` holds other tensors than the model: "
            f"{sorted({name for name, _ in saved ^ made})[:5]}"
        )
    for name, tensor in state.items():
        # What the model computes for itself, it may not have in a fresh instance.
        if name in found:
            found[name].data = tensor.to(found[name].device)
    return pruned


def _sums(folder: Path) -> dict[str, str]:
    if not folder.is_dir() or (folder / "final" / _SUMS).is_file():
        what = "is the work folder of a run" if folder.is_dir() else "is no folder"
        meant = f"`{folder / 'final'}`" if folder.is_dir() else "the one that `prunella.save` wrote"
        raise WorkspaceError(f"`{folder}` {what}, and holds no saved model. Name {meant}")
    try:
        sums: dict[str, str] = json.loads((folder / _SUMS).read_text())
        return {name: sums[name] for name in (_PLAN, _WEIGHTS)}
    except (OSError, ValueError, KeyError) as error:
        raise WorkspaceError(
            f"`{folder}` holds no complete saved model ({type(error).__name__}: {error}); "
            "save it again"
        ) from error


def _sum(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WorkspaceError(f"`{path}` cannot be read: {error}") from error
