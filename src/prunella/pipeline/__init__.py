"""The tasks of the command line as functions: analyze, suggest, prune, finetune, run, ..."""

from prunella.pipeline.verbs import Result as Result
from prunella.pipeline.verbs import Suggestion as Suggestion
from prunella.pipeline.verbs import analyze as analyze
from prunella.pipeline.verbs import finetune as finetune
from prunella.pipeline.verbs import prune as prune
from prunella.pipeline.verbs import rehearse as rehearse
from prunella.pipeline.verbs import report as report
from prunella.pipeline.verbs import run as run
from prunella.pipeline.verbs import stat as stat
from prunella.pipeline.verbs import suggest as suggest
from prunella.pipeline.verbs import transform as transform

__all__ = [
    "Result",
    "Suggestion",
    "analyze",
    "finetune",
    "prune",
    "rehearse",
    "report",
    "run",
    "stat",
    "suggest",
    "transform",
]
