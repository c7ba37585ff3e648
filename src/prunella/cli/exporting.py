"""`prunella export`: its help, its options, and the table it prints."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunella import launcher
from prunella.cli import speaking
from prunella.cli.options import apart, read, signature, typed_again, with_signature
from prunella.cli.words import Command
from prunella.config import Config
from prunella.errors import ConfigError
from prunella.files import expanded

if TYPE_CHECKING:  # it brings torch along, which `prunella --help` need not wait for
    from prunella.pipeline.exporting import Wanted

_SECTIONS = ("task", "run")
_OPTIONS = {
    "to": (
        Annotated[
            str, typer.Option("--to", help="onnx, torch-export or openvino.", show_default=True)
        ],
        "onnx",
    ),
    "output": (
        Annotated[
            str | None,
            typer.Option("--output", "-o", help="The file (default: export/model in the folder)."),
        ],
        None,
    ),
    "batch": (
        Annotated[int, typer.Option("--batch", help="Samples in the batch that is timed.")],
        1,
    ),
    "dynamic": (
        Annotated[
            bool | None,
            typer.Option(
                "--dynamic/--fixed",
                help="A batch of any size, or of --batch (default: any where the model allows).",
            ),
        ],
        None,
    ),
    "int8": (
        Annotated[bool, typer.Option("--int8", help="Quantise as well, and judge the result.")],
        False,
    ),
    "max_drop": (
        Annotated[float, typer.Option("--max-drop", help="How much of the metric int8 may lose.")],
        0.01,
    ),
}
_HELP = (
    "Write the pruned model for another program, and see that it computes the same there.\n\n"
    "WHAT is the work folder of a run (its final model is exported), a folder that prunella.save "
    "wrote or a plan.json (both with --task.spec), or the settings or the task of a run. The file "
    "is compared with the model on random and real inputs, and refused where it differs. Dense and "
    "pruned model are timed side by side in the file's runtime. With --int8, a quantised file is "
    "written as well, if the metric on the valid split allows.\n\n"
    "Example: prunella export prunella-run --to onnx --int8\n\n"
    "Next: run the file where it is for"
)


def add_to(app: typer.Typer) -> None:
    """Register the verb."""

    def call(ctx: typer.Context, *, debug: bool, quiet: bool, **given: Any) -> None:
        from prunella.pipeline.exporting import Wanted

        wanted = {name: given.pop(name) for name in _OPTIONS}
        with speaking.errors(debug, "prunella export"):
            typed = typed_again(ctx.args, given)
            config, source = _what(list(ctx.args), given)
            output = None if wanted["output"] is None else expanded(wanted.pop("output"))
            wanted |= {"source": source, "output": output}
            with speaking.logging_to(None, quiet):
                _export(config, Wanted(**wanted), typed, quiet)

    app.command(
        "export",
        help=_HELP,
        short_help=_HELP.partition("\n")[0],
        cls=Command,
        options_metavar="WHAT [--to TARGET] [--section.key VALUE]...",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(with_signature(call, signature(_SECTIONS, more=_OPTIONS)))


def _what(words: list[str], given: dict[str, Any]) -> tuple[Config, Path | None]:
    """Read what is to be exported: settings, and the saved model or plan where it is one."""
    what, rest = apart(words)
    first = None if what is None else expanded(what)
    if first is None or not (first.is_dir() or first.suffix == ".json"):
        return read(words, given, task_needed=True), None
    config = read(rest, given, task_needed=False)
    if config.task.spec:
        return config, first
    if not first.is_dir() or (first / "plan.json").exists():
        raise ConfigError(
            f"`{first}` does not say which model it was made of. Name its task: "
            f"`prunella export {first} --task.spec my_task.py`"
        )
    from prunella.pipeline.exporting import settings_of

    return settings_of(first), None


def _export(config: Config, wanted: "Wanted", typed: str, quiet: bool) -> None:
    from prunella.cli import tables
    from prunella.pipeline.exporting import export
    from prunella.progress import rich_progress, silent

    found = export(config, wanted, silent if quiet else rich_progress, typed=typed)
    if not launcher.first():
        return
    speaking.show(tables.handed_over(found))
    exported = found.exported
    for each in exported.parity:
        speaking.say(f"largest difference from the model: {each}")
    batch = "of any size" if exported.batch is None else f"of {exported.batch}"
    speaking.say(f"the batch is {batch}; the file takes {', '.join(exported.form.names)}")
    if found.quantized is not None:
        speaking.say(
            f"int8: ranges from {found.quantized.samples} samples of the train split; at most "
            f"{found.quantized.max_drop:g} of the {found.metric} was granted"
        )
    speaking.console().print(str(exported.path))
    if found.refused is not None:
        raise found.refused
