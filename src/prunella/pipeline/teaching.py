"""Whether a pruned model can learn from the outputs of the dense one."""

import copy
from typing import TYPE_CHECKING

import torch

from prunella import tasks
from prunella.distilling import reads_classes, teaches
from prunella.finetuning.feeding import Feed

if TYPE_CHECKING:
    from prunella.pipeline.context import Context


def why_mute(context: "Context") -> str:
    """Say why the dense model has nothing to teach; "" where it has.

    Distillation compares outputs as logits of classes. What only looks like logits, several numbers
    or a sigmoid for each of several labels, would be pulled towards a softmax nobody reads. What is
    compared is what the pruned model returns while training, with what the dense one returns in
    evaluation mode.
    """
    task = context.task
    if task.train is not None:
        return ""  # its loop decides for itself what it learns from
    dense, example = context.dense, context.example  # which may be trained on the spot
    with torch.no_grad():
        if not teaches(dense(*example)):
            return (
                "the model's outputs are no logits of several classes (a tensor, or outputs with a "
                "tensor named `logits`) to learn from"
            )
        seed = context.config.run.seed
        batch = next(Feed(tasks.open_split(task, "train"), seed).epoch(1))
        batch = tasks.to_device(batch, context.device)
        inputs = tasks.positional(task, batch)
        try:
            outputs = copy.deepcopy(dense).train()(*inputs)  # a copy: its norms take them in
        except Exception:  # noqa: BLE001  what raises in training mode is told where it is trained
            return ""
        if not teaches(dense(*inputs), outputs):
            return (
                f"while training the model returns other outputs ({type(outputs).__name__}) than "
                "in evaluation mode, and nothing says which of them are the logits that are to be "
                "like the dense model's. Return a tensor named `logits` among them, of the same "
                "shape (in a dict, a dataclass or a named tuple)"
            )
        if not reads_classes(lambda outputs: task.loss(outputs, batch), outputs):
            return (
                "the task's loss does not take the model's outputs for logits of a softmax over "
                "classes (it changes when one number is added to all of them), so the dense "
                "model's outputs are not learnt from either. If they are, set `finetune.distill`"
            )
    return ""
