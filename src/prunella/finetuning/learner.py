"""What is trained and how it is stepped: the model as the loop sees it, and its optimizer."""

from typing import Any

import torch
from torch import Tensor, nn

from prunella.finetuning.recipe import Recipe
from prunella.model.outputs import in_float32

_IMAGE_DIMS = 4


class Learner(nn.Module):
    """A model in the precision and memory order of a recipe.

    It is this wrapper that Accelerate wraps and patches; the user's module stays as it is. The
    autocast is our own because Accelerate's precision is one for the whole process, fixed by the
    first who asks.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.model = model
        self.autocast = recipe.precision == "bf16"
        self.channels_last = recipe.channels_last
        if self.channels_last:
            model.to(memory_format=torch.channels_last)

    def forward(self, *inputs: Any) -> Any:
        """Run the model; floating-point outputs are float32."""
        if self.channels_last:
            inputs = tuple(channels_last(value) for value in inputs)
        if not self.autocast:
            return self.model(*inputs)
        device = next(self.model.parameters()).device
        with torch.autocast(device.type, torch.bfloat16):
            outputs = self.model(*inputs)
        return in_float32(outputs)


def channels_last(value: Any) -> Any:
    """Put a 4-dimensional tensor into channels_last memory order."""
    if isinstance(value, Tensor) and value.dim() == _IMAGE_DIMS:
        return value.contiguous(memory_format=torch.channels_last)
    return value


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Build the recipe's optimizer; its learning rate is set before each step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [parameter for parameter in trained if parameter.dim() > 1],
            "weight_decay": recipe.weight_decay,
        },
        {
            "params": [parameter for parameter in trained if parameter.dim() <= 1],
            "weight_decay": 0.0,
        },
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr)
    return torch.optim.SGD(
        groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0
    )
