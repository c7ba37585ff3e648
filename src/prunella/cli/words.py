"""The words of a command, put in the order that the parser wants: people type them in any."""

from typing import Any

from typer.core import TyperCommand, TyperGroup

from prunella.cli import speaking
from prunella.config import joined


class Command(TyperCommand):
    """A verb whose settings may stand anywhere, and whose switches need no value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words; every setting is one of them, with its value."""
        with speaking.errors("--debug" in args):
            args = joined(args)
        return super().parse_args(ctx, args)


class Group(TyperGroup):
    """All verbs; settings may stand before the verb, too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words, the verb first."""
        if args and args[0].startswith("--"):
            with speaking.errors("--debug" in args):
                args = joined(args)
            verb = next((word for word in args if word in self.commands), None)
            if verb is not None and "--help" not in args:
                args.remove(verb)
                args.insert(0, verb)
        return super().parse_args(ctx, args)
