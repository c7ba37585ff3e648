"""The command line: `prunella analyze | prune | finetune | transform | stat | run | report`."""

from importlib.metadata import version
from typing import Annotated

import typer

from prunella import launcher
from prunella.cli import speaking, verbs
from prunella.cli.words import Group

app = typer.Typer(
    name="prunella",
    cls=Group,
    help=(
        "Prune a neural network by whole channels, and heal it.\n\n"
        "Start with: prunella run digits --budget.macs 0.5\n\n"
        "Or step by step: analyze, then prune and finetune in turn, then transform. Everything is "
        "kept in a work folder, so every command can be killed and given again."
    ),
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
verbs.add_to(app)


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"prunella {version('prunella')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version."),
    ] = False,
) -> None:
    """Take what stands before a verb."""


def main() -> None:
    """Run the command line."""
    speaking.never_mute()
    try:
        app()
    except SystemExit as end:  # not after what nobody foresaw: others may still wait for this one
        if launcher.launched():
            from prunella.process_group import leave

            leave(failed=end.code not in (None, 0))
        raise
