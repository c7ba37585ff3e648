"""What a task suggests for finetuning, checked before it is used."""

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from prunella.config import FinetuneSection
from prunella.errors import ConfigError
from prunella.finetuning import Recipe
from prunella.tasks import Task

_RECIPE = TypeAdapter(Recipe)
_KNOWN = tuple(field.name for field in fields(Recipe) if field.name != "seed")


def suggested(task: Task) -> dict[str, Any]:
    """Return what a task suggests, named as `Recipe` names it.

    Raises:
        ConfigError: It suggests what a recipe does not have, or a value outside what it may be.
    """
    if not isinstance(task.settings, Mapping):
        raise ConfigError(
            f"`settings` of task `{task.name}` is a mapping such as {{'lr': 0.01}}, got "
            f"{type(task.settings).__name__}"
        )
    for key in task.settings:
        if key not in _KNOWN:
            raise ConfigError(f"task `{task.name}` cannot suggest `{key}`{_remedy(str(key))}")
    try:
        recipe = _RECIPE.validate_python(dict(task.settings))
    except ValidationError as cause:
        raise ConfigError("; ".join(_complaints(task, cause))) from cause
    return {key: getattr(recipe, key) for key in task.settings}


def _remedy(key: str) -> str:
    if key == "seed":
        return ": it is the run's, `run.seed`"
    if key in FinetuneSection.model_fields:
        return f" in its `settings`: it is the user's, `finetune.{key}`"
    near = difflib.get_close_matches(key, _KNOWN, n=1)
    hint = f" Did you mean `{near[0]}`?" if near else ""
    return f" in its `settings`.{hint} It may suggest {', '.join(_KNOWN)}"


def _complaints(task: Task, cause: ValidationError) -> list[str]:
    found = []
    for error in cause.errors():
        rule = error["msg"].removeprefix("Value error, ")
        if error["loc"]:
            key = error["loc"][0]
            rule = f"`{key}`: {rule[0].lower()}{rule[1:]}, got {error['input']!r}"
        found.append(f"`settings` of task `{task.name}`, {rule}")
    return found
