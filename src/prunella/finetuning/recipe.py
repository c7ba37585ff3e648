"""How to finetune, and what came of it: two frozen values."""

import math
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from prunella.errors import ConfigError
from prunella.finetuning.moments import Moments
from prunella.finetuning.schedule import DECAYS, Decay


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides how a model is finetuned, apart from its data.

    Args:
        epochs: Passes over the training data.
        lr: The learning rate after warm-up, before decay. With several processes the batch grows
            with their number; it is not scaled for that.
        decay: How it falls, see `prunella.finetuning.schedule`.
        warmup: Share of all steps over which it rises to `lr`, 0 <= warmup < 1.
        optimizer: "sgd" (Nesterov) or "adamw".
        momentum: Of SGD.
        weight_decay: Pulls weights to zero; biases and norms, which have one dimension, are exempt.
        distill: Share of the loss that pulls towards the teacher's outputs, 0 = off, 1 = all.
        temperature: By which logits are divided in that share, > 0.
        feature_distill: Weight of what is added to the loss to pull what the model makes on the way
            towards what the teacher makes there (`distilling.feature_distance`), 0 = off.
        carry_state: Begin with what the optimizer remembers of the training before the prune, where
            that is given, and hand out what it remembers at the end.
        ema: Share of the running average of the weights kept at each step, e.g. 0.999; the average
            is what is judged and returned. 0 = off.
        seed: With the epoch, decides every random number of the training.
        precision: "bf16" runs the forward passes under autocast.
        channels_last: Keep 4-dimensional tensors in that memory order, which convolutions like.
    """

    epochs: int = 12
    lr: float = 0.01
    decay: Decay = "cosine"
    warmup: float = 0.05
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    distill: float = 0.9
    temperature: float = 4.0
    feature_distill: float = 0.0
    carry_state: bool = False
    ema: float = 0.0
    seed: int = 0
    precision: Literal["no", "bf16"] = "no"
    channels_last: bool = False

    @property
    def taught(self) -> bool:
        """Whether a teacher has a part in the loss."""
        return self.distill > 0 or self.feature_distill > 0

    def __post_init__(self) -> None:
        rules = {
            f"epochs is at least 1, got {self.epochs}": self.epochs >= 1,
            f"lr is greater than 0 and finite, got {self.lr}": 0 < self.lr < math.inf,
            f"decay is one of {', '.join(DECAYS)}, got {self.decay!r}": self.decay in DECAYS,
            f"warmup is a share of the steps in [0, 1), got {self.warmup}": 0 <= self.warmup < 1,
            f"optimizer is 'sgd' or 'adamw', got {self.optimizer!r}": self.optimizer
            in ("sgd", "adamw"),
            f"momentum is in [0, 1), got {self.momentum}": 0 <= self.momentum < 1,
            f"weight_decay is at least 0 and finite, got {self.weight_decay}": (
                0 <= self.weight_decay < math.inf
            ),
            f"distill is a share of the loss in [0, 1], got {self.distill}": 0 <= self.distill <= 1,
            f"temperature is greater than 0 and finite, got {self.temperature}": (
                0 < self.temperature < math.inf
            ),
            f"feature_distill is at least 0 and finite, got {self.feature_distill}": (
                0 <= self.feature_distill < math.inf
            ),
            f"ema is in [0, 1), got {self.ema}": 0 <= self.ema < 1,
            f"seed is at least 0, got {self.seed}": self.seed >= 0,
            f"precision is 'no' or 'bf16', got {self.precision!r}": self.precision
            in ("no", "bf16"),
        }
        for rule, kept in rules.items():
            if not kept:
                raise ConfigError(rule)


@dataclass(frozen=True, slots=True)
class Epoch:
    """One finished epoch, 1-based: mean training loss, metric on "valid", last learning rate.

    Loss and learning rate are None where the task's own training loop ran.
    """

    epoch: int
    loss: float | None
    metric: float
    lr: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Finetuned:
    """A finetuned model and how it came to be.

    Args:
        model: A trained copy of the model given.
        history: Every epoch, those of earlier, interrupted runs included.
        seconds: Spent in all of them.
        finished: False where `report` asked to stop before the last epoch.
        resumed: How many epochs were taken from the checkpoint.
        note: Why a checkpoint that was there was not used; "" otherwise.
        moments: What the optimizer remembers, if the recipe carries it on; else nothing.
    """

    model: nn.Module
    history: tuple[Epoch, ...]
    seconds: float
    finished: bool
    resumed: int = 0
    note: str = ""
    moments: Moments = field(default_factory=dict)

    @property
    def metric(self) -> float:
        """The metric on "valid" after the last epoch."""
        return self.history[-1].metric
