"""What a user may set: one TOML file, every key of it also `--section.key value` on every verb."""

from prunella.config.keys import changed, keys
from prunella.config.loading import load
from prunella.config.sample import template
from prunella.config.sections import Config, FinetuneSection, PruneSection
from prunella.config.words import joined, parse_overrides

__all__ = [
    "Config",
    "FinetuneSection",
    "PruneSection",
    "changed",
    "joined",
    "keys",
    "load",
    "parse_overrides",
    "template",
]
