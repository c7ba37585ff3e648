"""The words of a command, put in the order that the parser wants: people type them in any."""

import difflib
import shlex
from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

from prunella.cli import speaking
from prunella.config import joined
from prunella.errors import ConfigError

_NEAR = 0.7  # below, what was typed is no misspelt verb: "digits" looks a little like "init"


class Command(TyperCommand):
    """A verb whose settings may stand anywhere, and whose switches need no value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words; every setting is one of them, with its value."""
        with speaking.errors("--debug" in args, f"prunella {ctx.info_name}"):
            args = joined(args)
        return super().parse_args(ctx, args)


class Group(TyperGroup):
    """All verbs; settings, or what a verb is about, may stand before the verb, too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words, the verb first."""
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if args and args[0] not in (*own, *self.commands):
            with speaking.errors("--debug" in args):
                args = self._verb_first(args)
        return super().parse_args(ctx, args)

    def _verb_first(self, args: list[str]) -> list[str]:
        words = joined(args)
        verb = next((word for word in words if word in self.commands), None)
        if verb is None and {"-h", "--help"}.intersection(words):
            return ["--help"]
        if verb is None:
            known = [name for name, command in self.commands.items() if not command.hidden]
            raise ConfigError(_why_none(args, words, known))
        words.remove(verb)
        return [verb, *words]


def _why_none(args: list[str], words: list[str], known: Sequence[str]) -> str:
    """Say what is wrong with words without a verb, and the command that is probably meant."""
    word = next((word for word in words if not word.startswith("-")), None)
    if word is None:
        return "no verb is given. Say what to do, e.g. `prunella run digits --budget.macs 0.5`"
    near = difflib.get_close_matches(word, known, n=1, cutoff=_NEAR)
    if near:
        meant = [near[0] if arg == word else arg for arg in args]
        return f"there is no verb `{word}`. Did you mean `prunella {shlex.join(meant)}`?"
    if not may_be_pruned(word):
        return f"there is no verb `{word}`. The verbs are {', '.join(known)}"
    verb = "prune" if word.endswith(".onnx") else "run"
    bounded = word.endswith((".toml", ".onnx")) or any(arg.startswith("--budget.") for arg in args)
    meant = [verb, *args, *([] if bounded else ["--budget.macs", "0.5"])]
    return (
        f"a verb is missing before `{word}`. Say what to do with it, e.g. "
        f"`prunella {shlex.join(meant)}`"
    )


def may_be_pruned(word: str) -> bool:
    """Say whether a word names a task, settings or a model, by what it looks like."""
    if word.endswith((".py", ".toml", ".onnx")):
        return True
    from prunella.tasks import CATALOGUE  # it brings torch along

    return word in CATALOGUE
