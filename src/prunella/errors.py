"""Every error Prunella raises on purpose, as one tree.

PrunellaError
  x TraceError            the model could not be captured
  x CouplingError         two rules disagree about one axis
  x TransformError        the pruned model does not run (a size is written into its code)
  x CertificateError      the pruned model runs and computes something else
  x ExportError           the model cannot be exported, or computes something else there
  x BudgetError           no plan fits                              also ValueError
  x NothingToPruneError   the plan removes nothing                  also ValueError
  x PlanMismatchError     a plan of another model                   also ValueError
  x ConfigError           a bad option or argument                  also ValueError
  x TaskError             the user's task misbehaves (data, loss, metric, training loop)
  x WorkspaceError        a file of a run is damaged, missing or cannot be written

The branches say who is at fault; a message names the thing, the reason and the remedy.
"""


class PrunellaError(Exception):
    """Root of all errors raised on purpose."""


class TraceError(PrunellaError):
    """The model could not be captured as a graph; the framework's own error is the cause."""


class CouplingError(PrunellaError):
    """Two rules disagree about the channels of one axis."""


class TransformError(PrunellaError):
    """The pruned model does not run; the original model was left untouched."""


class CertificateError(PrunellaError):
    """The pruned model differs from the masked one; the original model was left untouched."""


class ExportError(PrunellaError):
    """A runtime cannot have the model, or computes something else with it."""


class BudgetError(PrunellaError, ValueError):
    """No plan fits the budget; `reachable` is the smallest cost a plan can have."""

    def __init__(self, message: str, reachable: float) -> None:
        super().__init__(message, reachable)  # as it was called, or no other process could have it
        self.reachable = reachable

    def __str__(self) -> str:
        return str(self.args[0])


class NothingToPruneError(PrunellaError, ValueError):
    """The plan would remove nothing; the message lists why."""


class PlanMismatchError(PrunellaError, ValueError):
    """The plan belongs to a model of another structure."""


class ConfigError(PrunellaError, ValueError):
    """An option or argument is outside what it may be."""


class TaskError(PrunellaError):
    """The user's task misbehaves: its data, loss, metric or training loop."""


class WorkspaceError(PrunellaError):
    """A file of a run is damaged, missing or cannot be written."""
