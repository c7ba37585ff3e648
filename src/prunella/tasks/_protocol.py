"""What a user's problem is: a model, its data, its loss and its metric."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from prunella.errors import ConfigError

Split = Literal["train", "valid", "test"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One number that says how good a model is.

    Args:
        name: As reports show it, e.g. "accuracy".
        higher_is_better: The direction; nothing is guessed from values.
        compute: Given pairs of model outputs and batch, one at a time, returns the number. It is
            called in evaluation mode without gradients and must consume every pair.
    """

    name: str
    higher_is_better: bool
    compute: Callable[[Iterable[tuple[Any, Any]]], float]

    def better(self, value: float, other: float) -> bool:
        """Tell whether `value` is strictly better than `other`."""
        return value > other if self.higher_is_better else value < other


def first_of(batch: Any) -> tuple[Any, ...]:
    """Take the model's only input from a batch that is a tuple or list of (input, target, ...)."""
    return (batch[0],)


@dataclass(frozen=True, slots=True)
class Task:
    """A problem, as the user's file or the built-in catalogue states it.

    Args:
        name: As reports show it.
        model: Returns the trained dense model. It may take time and is called again in each
            process of a run, so a model trained on the spot keeps its weights in a file.
        data: Returns the batches of a split, iterable again and again. "valid" is held out of the
            training data: every choice between models is made on it, "test" is for the end. A
            training loader's order and augmentation are a pure function of (seed, epoch): either
            it has `set_epoch(epoch)`, which is called before each pass, or it draws from the
            random generators of torch, numpy and Python, which are seeded before each pass. Its
            length, where it has one, is how many batches make an epoch.
        loss: The training loss, a scalar, of model outputs and batch.
        metric: How good a model is.
        example_inputs: Positional inputs of the model for tracing and costs, batch size 1.
        inputs: The positional inputs of the model in a batch.
        train: A training loop of the user's own, `train(model, epochs) -> model`, called in place
            of ours.
        settings: Suggested defaults of finetuning, named as `Recipe` names them; what the user
            sets is stronger. Learning rates are tried around `lr`, `decay` is the only one tried,
            and the seed is the run's.
    """

    name: str
    model: Callable[[], nn.Module]
    data: Callable[[Split], Iterable[Any]]
    loss: Callable[[Any, Any], Tensor]
    metric: Metric
    example_inputs: tuple[Any, ...]
    inputs: Callable[[Any], tuple[Any, ...]] = first_of
    train: Callable[[nn.Module, int], nn.Module | None] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.metric, Metric):
            raise ConfigError(
                f"`metric` of task `{self.name}` is a `prunella.tasks.Metric`, got "
                f"{type(self.metric).__name__}: write `Metric('accuracy', True, compute)`"
            )
        if isinstance(self.model, nn.Module):
            raise ConfigError(
                f"`model` of task `{self.name}` is a function that returns the trained model, got "
                f"a {type(self.model).__name__}: write `lambda: model`"
            )
        for name in ("model", "data", "loss", "inputs"):
            if not callable(getattr(self, name)):
                raise ConfigError(
                    f"`{name}` of task `{self.name}` is a function, got "
                    f"{type(getattr(self, name)).__name__}"
                )
        if not isinstance(self.example_inputs, tuple):
            raise ConfigError(
                f"`example_inputs` of task `{self.name}` is a tuple of the model's positional "
                f"inputs, got {type(self.example_inputs).__name__}: write `(x,)` for one input `x`"
            )
