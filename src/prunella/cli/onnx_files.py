"""`prunella prune model.onnx`: its options, and what it prints."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from prunella import launcher
from prunella.cli import speaking
from prunella.errors import ConfigError
from prunella.files import expanded

HELP = (
    "With an ONNX file no task is needed: prunella prune model.onnx --calibration data.npz --macs "
    "50% --output pruned.onnx. It takes --params, --weight-bytes, --activation-bytes, --latency, "
    "--runtime onnxruntime:threads=1, --ratio, --shape NAME=1x3x224x224, --criterion, "
    "--multiple-of, --exclude NODE, --candidates and --seed as well; see the guide on ONNX files."
)
_BUDGETS = ("macs", "params", "weight_bytes", "activation_bytes", "latency")


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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. See the end of `prunella prune --help`")


def parsed(words: Sequence[str]) -> dict[str, Any]:
    """Read what was typed: arguments for `prunella.prune_onnx`.

    Raises:
        ConfigError: An option is unknown or bad.
    """
    parser = _Parser(prog="prunella prune", add_help=False, allow_abbrev=False)
    parser.add_argument("path", type=Path)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--output", "-o", type=Path, default=Path("pruned.onnx"))
    for budget in _BUDGETS:
        parser.add_argument(f"--{budget.replace('_', '-')}", dest=budget)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--ratio", type=float)
    parser.add_argument("--shape", dest="shapes", action="append", default=[])
    parser.add_argument("--criterion")
    parser.add_argument("--multiple-of", type=int, default=1)
    parser.add_argument("--exclude", action="append", default=[])
    parser.add_argument("--candidates", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    found = vars(parser.parse_args(list(words)))
    # Here, and not as types of the parser's: it would put a message of its own in place of ours.
    places = {name: found[name] for name in ("path", "calibration", "output")}
    found |= {name: expanded(place) for name, place in places.items() if place is not None}
    return found | {"shapes": dict(map(_shape, found["shapes"]))}


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
    if not launcher.first():
        return
    from prunella.onnxfiles import prune_onnx
    from prunella.progress import rich_progress, silent

    options = parsed([*words, *_budgets(given)])
    if dry_run:
        options["output"] = None
    with speaking.logging_to(None, quiet):
        result = prune_onnx(**options, progress=silent if quiet else rich_progress)
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
    if result.times is not None:
        speaking.say(f"one sample: {result.times}")
    speaking.say(f"wrote {result.path} and {result.plan_path}")


def _budgets(given: dict[str, Any]) -> list[str]:
    """Return budgets that were given as settings (`--budget.macs 0.5`) as options of ours."""
    words: list[str] = []
    for name, value in given.items():
        if value is not None:
            option = name.replace("__", ".")
            if not option.startswith("budget."):
                raise ConfigError(
                    f"`--{option}` is a setting of a task, and this is an ONNX file. See the end "
                    "of `prunella prune --help` for what can be given"
                )
            words += [f"--{option.removeprefix('budget.').replace('_', '-')}", str(value)]
    return words


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.rpartition("=")
    try:
        return name, tuple(int(n) for n in sizes.split("x"))
    except ValueError:
        raise ConfigError(f"`--shape {text}`: give it as NAME=1x3x224x224") from None
