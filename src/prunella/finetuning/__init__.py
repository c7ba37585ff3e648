"""Finetuning: a recipe, a training loop that survives being killed, and its checkpoints."""

from prunella.finetuning.finetuning import finetune as finetune
from prunella.finetuning.losses import DivergedError as DivergedError
from prunella.finetuning.moments import Moments as Moments
from prunella.finetuning.moments import cut_moments as cut_moments
from prunella.finetuning.recipe import Epoch as Epoch
from prunella.finetuning.recipe import Finetuned as Finetuned
from prunella.finetuning.recipe import Recipe as Recipe
from prunella.finetuning.schedule import DECAYS as DECAYS
from prunella.finetuning.schedule import Decay as Decay

__all__ = [
    "DECAYS",
    "Decay",
    "DivergedError",
    "Epoch",
    "Finetuned",
    "Moments",
    "Recipe",
    "cut_moments",
    "finetune",
]
