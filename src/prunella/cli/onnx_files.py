"""`prunella prune model.onnx`: its options, and what it prints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from prunella.cli import speaking
from prunella.errors import ConfigError

HELP = (
    "With an ONNX file no task is needed: prunella prune model.onnx --calibration data.npz --macs "
    "50% --output pruned.onnx. It takes --params, --weight-bytes, --activation-bytes, --ratio, "
    "--shape NAME=1x3x224x224, --criterion, --multiple-of, --exclude NODE, --candidates and --seed "
    "as well; see the guide on ONNX files."
)


def meant(words: Sequence[str]) -> bool:
    """Say whether what was typed names an ONNX file to prune, and not one in an option."""
    value = False
    for word in words:
        if word.startswith("-"):
            value = "=" not in word
        elif value:
            value = False
        else:
            return word.endswith(".onnx")
    return False


def prune(words: Sequence[str], given: dict[str, Any], *, quiet: bool, dry_run: bool) -> None:
    """Prune an ONNX file, as typed.

    Args:
        words: What was typed, but for the options that every verb has.
        given: Settings of tasks; only budgets make sense here.
        quiet: No progress.
        dry_run: Say what would be kept, and write nothing.

    Raises:
        ConfigError: An option is unknown or bad.
    """
    for name, value in given.items():
        if value is not None:
            option = name.replace("__", ".")
            if not option.startswith("budget."):
                raise ConfigError(
                    f"`--{option}` is a setting of a task, and this is an ONNX file. See the end "
                    "of `prunella prune --help` for what can be given"
                )
            words = [*words, f"--{option.removeprefix('budget.').replace('_', '-')}", str(value)]
    command = typer.main.get_command(_APP)
    try:
        command.main(
            list(words),
            prog_name="prunella prune",
            standalone_mode=False,
            obj={"quiet": quiet, "dry_run": dry_run},
        )
    except click.ClickException as error:
        raise ConfigError(
            f"{error.format_message()} See the end of `prunella prune --help`"
        ) from error


def _prune(  # noqa: PLR0913 - what is given on the command line
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The ONNX file.", metavar="MODEL.onnx")],
    *,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="An .npz file with some hundred inputs, an array for each input of the graph by "
            "its name, samples first. No labels. Without it weights alone decide."
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write; the plan goes beside it.")
    ] = Path("pruned.onnx"),
    macs: Annotated[
        str | None, typer.Option(help="What may remain: 50%, 0.5 or a count.", metavar="BUDGET")
    ] = None,
    params: Annotated[str | None, typer.Option(help="Likewise.", metavar="BUDGET")] = None,
    weight_bytes: Annotated[str | None, typer.Option(help="Likewise.", metavar="BUDGET")] = None,
    activation_bytes: Annotated[
        str | None, typer.Option(help="Likewise.", metavar="BUDGET")
    ] = None,
    ratio: Annotated[
        float | None, typer.Option(help="Instead of a budget: what every group loses.")
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="A shape to prune for, where the file leaves sizes open and there is no "
            "calibration data: images=1x3x640x640."
        ),
    ] = None,
    criterion: Annotated[str | None, typer.Option(help="How channels are scored.")] = None,
    multiple_of: Annotated[int, typer.Option(help="Groups keep a multiple of so many.")] = 1,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Nodes to leave whole, by name or glob.")
    ] = None,
    candidates: Annotated[int, typer.Option(help="How many plans to try.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the draws of plans.")] = 0,
) -> None:
    """Prune an ONNX file to a budget, repair it from calibration data, prove and write it.

    The file is edited: names, metadata, opset and dynamic axes stay. The result is proven equal to
    the masked network, and run in ONNX Runtime.

    Example: prunella prune model.onnx --calibration data.npz --macs 50% -o pruned.onnx
    """
    from prunella.onnxfiles import prune_onnx
    from prunella.progress import rich_progress, silent

    quiet, dry_run = context.obj["quiet"], context.obj["dry_run"]
    with speaking.logging_to(None, quiet):
        result = prune_onnx(
            file,
            None if dry_run else output,
            calibration,
            shapes=dict(map(_shape, shape or [])),
            macs=macs,
            params=params,
            weight_bytes=weight_bytes,
            activation_bytes=activation_bytes,
            ratio=ratio,
            criterion=criterion,
            multiple_of=multiple_of,
            exclude=tuple(exclude or ()),
            candidates=candidates,
            seed=seed,
            progress=silent if quiet else rich_progress,
        )
    speaking.console().print(result.summary, markup=False)
    if result.path is None:
        speaking.say("nothing was written: this was a dry run")
        return
    speaking.say(
        f"proven equal to the masked network to {result.certificate.error:.1e} "
        f"({result.certificate.dtype}); ONNX Runtime makes the same of the written file to "
        f"{result.parity:.1e} (of the original: {result.dense_parity:.1e})"
    )
    if result.moved is not None:
        speaking.say(
            f"on the calibration data outputs moved by {result.moved:.1%} of their own size; "
            "measure what matters to you on data of your own"
        )
    speaking.say(f"wrote {result.path} and {result.plan_path}")


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.rpartition("=")
    try:
        return name, tuple(int(n) for n in sizes.split("x"))
    except ValueError:
        raise ConfigError(f"`--shape {text}`: give it as NAME=1x3x224x224") from None


_APP = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_APP.command(context_settings={"help_option_names": ["-h", "--help"]})(_prune)
