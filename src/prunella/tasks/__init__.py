"""Tasks: the protocol a user's problem follows, the built-in ones, and how a model is judged."""

from prunella.tasks._code import code_of as code_of
from prunella.tasks._evaluating import NotFiniteError as NotFiniteError
from prunella.tasks._evaluating import batches as batches
from prunella.tasks._evaluating import evaluate as evaluate
from prunella.tasks._evaluating import fingerprint as fingerprint
from prunella.tasks._evaluating import model_of as model_of
from prunella.tasks._evaluating import open_split as open_split
from prunella.tasks._evaluating import positional as positional
from prunella.tasks._evaluating import size_of as size_of
from prunella.tasks._evaluating import to_device as to_device
from prunella.tasks._loading import CATALOGUE as CATALOGUE
from prunella.tasks._loading import load as load
from prunella.tasks._protocol import Metric as Metric
from prunella.tasks._protocol import Split as Split
from prunella.tasks._protocol import Task as Task
from prunella.tasks._protocol import first_of as first_of
from prunella.tasks.metrics import accuracy as accuracy
from prunella.tasks.metrics import cross_entropy as cross_entropy

__all__ = [
    "CATALOGUE",
    "Metric",
    "NotFiniteError",
    "Split",
    "Task",
    "accuracy",
    "batches",
    "code_of",
    "cross_entropy",
    "evaluate",
    "fingerprint",
    "first_of",
    "load",
    "model_of",
    "open_split",
    "positional",
    "size_of",
    "to_device",
]
