"""The verbs: their help, and what each prints."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunella import launcher
from prunella.cli import exporting, onnx_files, speaking
from prunella.cli.options import apart, read, signature, typed_again, with_signature
from prunella.cli.words import Command, may_be_pruned
from prunella.config import Config, template
from prunella.errors import ConfigError, WorkspaceError
from prunella.files import expanded

if TYPE_CHECKING:  # it brings torch along, which `prunella --help` need not wait for
    from prunella.pipeline import Suggestion

SHORT = 1
INTERRUPTED = 130


@dataclass(frozen=True)
class Verb:
    """One verb of the command line.

    Attributes:
        name: As it is typed.
        help: Its help.
        sections: The sections whose settings the help lists.
        act: What it does.
        rehearse: What it does with `--dry-run`; None where there is no such option.
        logged: Whether it works in the work folder, which its log is then a part of; what only
            reads leaves no folder behind.
    """

    name: str
    help: str
    sections: tuple[str, ...]
    act: Callable[[Config, str, bool], None]
    rehearse: Callable[[Config, str, bool], None] | None = None
    logged: bool = True


def _task(name: str, *lists: str) -> Callable[[Config, str, bool], None]:
    """Do what `pipeline` has under this name; then print its table, and what else of `tables`."""

    def act(config: Config, typed: str, quiet: bool) -> None:
        from prunella import pipeline
        from prunella.cli import tables
        from prunella.progress import numbered, rich_progress, silent
        from prunella.report.wording import held

        progress = silent if quiet else rich_progress
        result = getattr(pipeline, name)(config, progress, typed=typed)
        if not launcher.first():
            return
        speaking.show(tables.summary(result.record))
        for listed in lists:
            speaking.show(getattr(tables, listed)(result.record))
        if result.record.latency_budget is not None:
            speaking.say(f"budget on latency: {held(result.record.latency_budget)}")
        if result.record.epochs:
            speaking.say(f"finetuning took {numbered(result.record.epochs, 'epoch')} in all")
        speaking.say(result.text)
        if result.next:
            speaking.say(f"next: {result.next}")
        if result.record.outcome in ("floor", "missed"):
            raise typer.Exit(SHORT)

    return act


def _stat(config: Config, typed: str, quiet: bool) -> None:
    from prunella import pipeline
    from prunella.cli import tables
    from prunella.progress import rich_progress, silent

    result = pipeline.stat(config, silent if quiet else rich_progress, typed=typed)
    if not launcher.first():
        return
    speaking.show(tables.summary(result.record))
    speaking.show(tables.layers(result.layers))
    speaking.show(tables.groups(result.record))
    if result.record.frozen:
        speaking.show(tables.frozen(result.record))
    speaking.say(f"next: {result.next}")


def _suggest(config: Config, typed: str, quiet: bool) -> None:
    from prunella import pipeline
    from prunella.cli import tables
    from prunella.progress import rich_progress, silent

    found = pipeline.suggest(config, silent if quiet else rich_progress, typed=typed)
    if not launcher.first():
        return
    speaking.show(tables.forecasts(found))
    _explain(found)
    if found.why:
        speaking.say(found.why)
    speaking.say(f"next: {found.next}")


def _rehearse(config: Config, typed: str, quiet: bool) -> None:
    from prunella import pipeline
    from prunella.cli import tables
    from prunella.progress import rich_progress, silent

    found = pipeline.rehearse(config, silent if quiet else rich_progress, typed=typed)
    if not launcher.first():
        return
    speaking.show(tables.forecasts(found))
    speaking.show(tables.kept(found.rows[0]))
    _explain(found)
    speaking.say(f"nothing was pruned; to do it: {found.next}")


def _explain(found: "Suggestion") -> None:
    speaking.say(
        f"predicted on the valid split, without finetuning, from the sensitivity ({found.source})"
    )


def _report(config: Config, typed: str, quiet: bool) -> None:
    if not launcher.first():
        return
    from prunella import pipeline

    speaking.console().print(str(pipeline.report(config)))


_SETTINGS = (
    "SETTINGS is a TOML file (`prunella init` writes one), or the task itself: a built-in one or "
    "a Python file. Every key of the file is an option as well, on every verb; the ones that "
    "matter here are listed below."
)

VERBS = (
    Verb(
        "analyze",
        "Measure what each group of channels is worth.\n\n"
        "Every group alone is pruned at each ratio and the metric is measured on the valid split: "
        "its sensitivity, printed as the change of the metric. This is done once, on the dense "
        "model; prune uses it to spend the budget where it hurts least. Stop it at any time: the "
        "same command goes on.\n\n"
        "Example: prunella analyze digits\n\nNext: prunella prune",
        ("task", "analyze", "run"),
        _task("analyze", "sensitivity"),
    ),
    Verb(
        "suggest",
        "Predict the metric for a row of budgets, and mark the knee.\n\n"
        "Uses the sensitivity that analyze measured; where there is none, a quick estimate from a "
        "few samples and a few evaluations. Nothing is pruned or trained. Finetuning wins back "
        "much of what is lost: the knee, not the value, is what to look at.\n\n"
        "Example: prunella suggest digits\n\nNext: prunella prune",
        ("task", "budget", "analyze", "prune", "run"),
        _suggest,
    ),
    Verb(
        "prune",
        "Prune one round, to a budget relative to the dense model.\n\n"
        "The budget says what may remain: 0.7 keeps at most 70%. Give a smaller one each round, "
        "with finetune between. The pruned model is proven equal to the masked one.\n\n"
        "With --dry-run it says what it would keep, what that is predicted to cost, and stops.\n\n"
        "Example: prunella prune digits --budget.macs 0.7\n\nNext: prunella finetune\n\n"
        + onnx_files.HELP,
        ("task", "budget", "prune", "run"),
        _task("prune"),
        _rehearse,
    ),
    Verb(
        "finetune",
        "Heal what was pruned last.\n\n"
        "A few experiments over learning rate and decay, judged on the valid split; hopeless ones "
        "end early, the best one is kept.\n\n"
        "Example: prunella finetune digits --finetune.epochs 4 --finetune.max_drop 0.01\n\n"
        "Next: prunella prune with a smaller budget, or prunella transform",
        ("task", "finetune", "run"),
        _task("finetune"),
    ),
    Verb(
        "transform",
        "Make the final model of the last good round, prove it, test it.\n\n"
        "Writes `final/plan.json` and `final/model.safetensors` in the work folder. This is the "
        "only verb, with run, that looks at the test data, and it looks once.\n\n"
        "Example: prunella transform digits\n\nNext: prunella report",
        ("task", "run"),
        _task("transform"),
    ),
    Verb(
        "stat",
        "Count multiply-accumulates and parameters; list groups, and why others are frozen.\n\n"
        "Needs no budget and no data.\n\nExample: prunella stat digits\n\nNext: prunella analyze",
        ("task", "prune", "run"),
        _stat,
        logged=False,
    ),
    Verb(
        "run",
        "Do it all: analyze, prune and finetune until the budget, transform, test, report.\n\n"
        "Kill it at any moment and give the same command again: it goes on where it was and ends "
        "with the same plan.\n\n"
        "Example: prunella run digits --budget.macs 0.5 --finetune.max_drop 0.01\n\n"
        "In time instead of multiply-accumulates: --budget.latency 0.5 --budget.runtime "
        "onnxruntime:threads=1. The network is timed at many widths first, once.\n\n"
        "Next: open report.html in the work folder",
        ("task", "budget", "analyze", "prune", "finetune", "run"),
        _task("run"),
    ),
    Verb(
        "report",
        "Write the HTML report of a run, finished or not, and print its path.\n\n"
        "The run is named by its work folder, or its settings.\n\n"
        "Example: prunella report prunella-run",
        ("run",),
        _report,
        logged=False,
    ),
)


def add_to(app: typer.Typer) -> None:
    """Register all verbs, `ana` as an alias of analyze, export and init."""
    for verb in VERBS:
        _add(app, verb, verb.name, hidden=False)
        if verb.name == "analyze":
            _add(app, verb, "ana", hidden=True)
    exporting.add_to(app)
    app.command("init")(init)


def _add(app: typer.Typer, verb: Verb, name: str, *, hidden: bool) -> None:
    def call(ctx: typer.Context, *, debug: bool, quiet: bool, **given: Any) -> None:
        act = verb.act
        dry_run = given.pop("dry_run", False)
        if dry_run and verb.rehearse is not None:
            act = verb.rehearse
        with speaking.errors(debug, f"prunella {name}"):
            if verb.name == "prune" and onnx_files.meant(ctx.args):
                onnx_files.prune(ctx.args, given, quiet=quiet, dry_run=dry_run)
                return
            words = ctx.args
            if verb.name == "report":
                words, given = _of_a_folder(words, given)
            config = read(words, given, task_needed=verb.name != "report")
            typed = typed_again(words, given)
            log = config.folder / "run.log" if verb.logged else None
            with speaking.logging_to(log, quiet):
                try:
                    act(config, typed, quiet)
                except KeyboardInterrupt:
                    speaking.interrupted(f"prunella {name} {typed}".strip())
                    raise typer.Exit(INTERRUPTED) from None

    app.command(
        name,
        help=f"{verb.help}\n\n{_SETTINGS}",
        short_help=verb.help.partition("\n")[0],
        hidden=hidden,
        cls=Command,
        options_metavar="[SETTINGS] [--section.key VALUE]...",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(with_signature(call, signature(verb.sections, dry_run=verb.rehearse is not None)))


def _of_a_folder(words: list[str], given: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Take a name for the work folder's, unless it is that of settings or a task."""
    first, rest = apart(words)
    if first is None or (not expanded(first).is_dir() and may_be_pruned(first)):
        return words, given
    return rest, {**given, "run__folder": first}


def init(
    file: Annotated[Path, typer.Argument(help="The file to write.")] = Path("prunella.toml"),
    task: Annotated[str, typer.Option(help="The task to name in it.")] = "digits",
    debug: Annotated[bool, typer.Option("--debug", help="Show where errors come from.")] = False,
) -> None:
    """Write a settings file with every key, its default and what it means.

    Example: prunella init prunella.toml

    Next: prunella run prunella.toml
    """
    if not launcher.first():
        return
    with speaking.errors(debug, "prunella init"):
        file = expanded(file)
        if file.suffix != ".toml":
            named = file.with_suffix(".toml") if file.name else file / "prunella.toml"
            raise ConfigError(
                f"`{file}` is no name for settings, which are known by their ending. Write "
                f"`prunella init {named}`"
            )
        if file.exists():
            raise ConfigError(
                f"`{file}` exists already. Remove it, or name another file: `prunella init NAME`"
            )
        try:
            file.write_text(template(_seen_from(file, task)), encoding="utf-8")
        except OSError as cause:
            raise WorkspaceError(
                f"cannot write `{file}`: {os.strerror(cause.errno or 0)}. Choose another place, or "
                f"see that `{file.parent}` is a folder that may be written to"
            ) from cause
        speaking.console().print(str(file))
        speaking.say(f"next: prunella run {file}")


def _seen_from(file: Path, task: str) -> str:
    """Write the path of a task file as the settings file has to: relative to itself."""
    if not task.endswith(".py") or expanded(task).is_absolute():
        return task
    return os.path.relpath(task, file.parent)
