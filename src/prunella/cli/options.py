"""Every setting of the configuration as an option of every verb."""

import inspect
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from prunella.config import Config, keys, load, parse_overrides
from prunella.errors import ConfigError
from prunella.files import expanded

_HELP = {
    "task": "Task: what is pruned",
    "budget": "Budget: what may remain",
    "analyze": "Analyze: sensitivity of every group",
    "prune": "Prune: which channels go, in how many rounds",
    "finetune": "Finetune: how the pruned model is healed",
    "run": "Run: where and how",
}


def signature(
    sections: Sequence[str],
    *,
    dry_run: bool = False,
    more: Mapping[str, tuple[Any, Any]] | None = None,
) -> inspect.Signature:
    """Give a verb's parameters: `ctx`, `debug`, `quiet`, and one per setting.

    Args:
        sections: Sections whose settings the verb's help lists; the others work but are not shown.
        dry_run: Whether the verb can say what it would do.
        more: Options of the verb's own: annotation and default by the variable's name.
    """
    flag = inspect.Parameter.KEYWORD_ONLY
    fixed: dict[str, tuple[Any, Any]] = {
        "ctx": (typer.Context, inspect.Parameter.empty),
        "debug": (
            Annotated[bool, typer.Option("--debug", help="Show where errors come from.")],
            False,
        ),
        "quiet": (
            Annotated[bool, typer.Option("--quiet", help="No progress, only warnings.")],
            False,
        ),
    }
    fixed |= more or {}
    if dry_run:
        fixed["dry_run"] = (
            Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")],
            False,
        )
    parameters = [
        inspect.Parameter(name, flag, default=default, annotation=annotation)
        for name, (annotation, default) in fixed.items()
    ]
    for name, default, text in keys():
        section = name.partition(".")[0]
        shown = _shown(default)
        option = typer.Option(
            "--task.options.NAME" if name == "task.options" else f"--{name}",
            help=(f"{text} (default: {shown})" if shown else text).replace("[", r"\["),
            show_default=False,
            rich_help_panel=_HELP[section],
            hidden=section not in sections,
            metavar="VALUE",
        )
        annotation = Annotated[str | None, option]
        parameters.append(
            inspect.Parameter(_variable(name), flag, default=None, annotation=annotation)
        )
    return inspect.Signature(parameters)


def with_signature(function: Callable[..., None], made: inspect.Signature) -> Callable[..., None]:
    """Let a function that takes `**given` look as if it named its parameters."""
    function.__signature__ = made  # type: ignore[attr-defined]
    function.__annotations__ = {
        name: parameter.annotation for name, parameter in made.parameters.items()
    }
    return function


def read(extra: Sequence[str], given: Mapping[str, Any], *, task_needed: bool) -> Config:
    """Put the settings together from what was typed.

    Args:
        extra: What the parser did not know: a TOML file or a task, and
            `--task.options.NAME=VALUE`.
        given: Values by variable name, as in `signature`.
        task_needed: Whether the verb can do nothing without a task.

    Raises:
        ConfigError: A setting is unknown or bad, or no task is given.
    """
    first, rest = apart(extra)
    file: Path | None = None
    overrides: dict[str, Any] = {}
    if first is not None and first.endswith(".toml"):
        file = expanded(first)
    elif first is not None:
        overrides["task.spec"] = first
    overrides.update(parse_overrides(rest))
    for name, _, _ in keys():
        value = given.get(_variable(name))
        if value is not None:
            overrides[name] = value
    config = load(file, overrides)
    if task_needed and not config.task.spec:
        raise ConfigError(
            "no task is given. Name a settings file (`prunella init` writes one), a Python file "
            "that defines `task`, or a built-in task: `prunella run digits --budget.macs 0.5`"
        )
    return config


def apart(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Tell the word that says what a verb is about, wherever it stands, from all the others."""
    first = next((word for word in words if not word.startswith("--")), None)
    rest = list(words)
    if first is not None:
        rest.remove(first)
    # What is misspelt comes first: a value of it is not what is wrong.
    return first, sorted(rest, key=lambda word: not word.startswith("--"))


def typed_again(extra: Sequence[str], given: Mapping[str, Any]) -> str:
    """Write down the settings as they were typed, for commands that messages suggest."""
    words = list(extra)
    for name, value in given.items():
        if value is not None:
            words += [f"--{name.replace('__', '.')}", value]
    return shlex.join(words)


def _variable(name: str) -> str:
    return name.replace(".", "__")


def _shown(default: object) -> str:
    if default in (None, "", (), {}):
        return ""
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return str(default).lower() if isinstance(default, bool) else str(default)
