"""Learn from a teacher's outputs, and from what it makes on the way, besides the targets."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prunella.errors import TaskError

_IMAGE_DIMS = 4
_SAME = 1e-3  # of a loss, above the noise of half precision
_FAINT = 1e-6  # mean square below which a teacher's feature counts as this: there is nothing in it


def distillation(outputs: Any, teacher_outputs: Any, temperature: float) -> Tensor:
    """Compute how far a model's class probabilities are from its teacher's.

        T^2 * KL(softmax(teacher / T) || softmax(model / T))

    summed over classes, mean over everything else. T^2 keeps the gradients' size as T varies. The
    classes are the last dimension of `[samples, classes]` and `[samples, tokens, classes]`, and
    dimension 1 of `[samples, classes, height, width]` and above.

    Args:
        outputs: Logits, or what `logits_of` finds them in.
        teacher_outputs: The same of the teacher.
        temperature: T, > 0; higher gives more weight to the improbable classes.

    Raises:
        TaskError: There are no logits in the outputs, or not of the teacher's shape.

    Source:
        Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2.
    """
    logits, wanted = logits_of(outputs).float(), logits_of(teacher_outputs).float()
    if logits.shape != wanted.shape:
        raise TaskError(
            f"the model's logits have shape {tuple(logits.shape)}, the teacher's "
            f"{tuple(wanted.shape)}. Give a teacher of the same classes, or set `distill = 0`"
        )
    dim = 1 if logits.dim() >= _IMAGE_DIMS else logits.dim() - 1
    if logits.dim() == 0 or logits.shape[dim] == 1:
        raise TaskError(
            f"outputs of shape {tuple(logits.shape)} have no classes to compare with the "
            "teacher's. Set `distill = 0`, or put the teacher into the task's loss"
        )
    divergence = F.kl_div(
        F.log_softmax(logits / temperature, dim),
        F.log_softmax(wanted / temperature, dim),
        reduction="none",
        log_target=True,
    )
    return temperature**2 * divergence.sum(dim).mean()


def logits_of(outputs: Any) -> Tensor:
    """Find the logits in a model's outputs: a tensor, an attribute or key `logits`.

    Raises:
        TaskError: There are none.
    """
    found = outputs
    if isinstance(outputs, Mapping):
        found = outputs.get("logits")
    elif not isinstance(outputs, Tensor):
        found = getattr(outputs, "logits", None)
    if not isinstance(found, Tensor):
        raise TaskError(
            f"distillation needs logits: a tensor, or outputs with a tensor named `logits`; the "
            f"model returned {type(outputs).__name__}. Set `distill = 0`, or return such outputs"
        )
    return found


def teaches(teacher_outputs: Any, outputs: Any = None) -> bool:
    """Tell whether a teacher's outputs are of use to `distillation`: logits of several classes.

    Args:
        teacher_outputs: Those of a teacher.
        outputs: Those of the model that is to learn from them; like the teacher's, if None.
    """
    try:
        distillation(teacher_outputs if outputs is None else outputs, teacher_outputs, 1.0)
    except TaskError:
        return False
    return True


def reads_classes(loss: Callable[[Any], Tensor], outputs: Any) -> bool:
    """Tell whether a loss takes logits for those of a softmax over classes.

    Adding one number to the logits of all classes changes no softmax, and so no loss that goes
    through one: cross-entropy with any smoothing or mixing of labels. A squared error changes, and
    so does a sigmoid for each class.

    Args:
        loss: Of outputs; may raise.
        outputs: Those of a model, with logits; they are left as they are.

    Returns:
        True also where that cannot be found out: outputs that cannot be changed, a loss that raises
        or is not finite.
    """
    try:
        logits = logits_of(outputs)
        plain = float(loss(outputs))
        moved = [float(loss(_with_logits(outputs, logits + step))) for step in (-1.0, 1.0)]
    except Exception:  # noqa: BLE001  what a user's loss may raise is told where it is trained with
        return True
    return not math.isfinite(plain) or all(
        math.isclose(value, plain, rel_tol=_SAME, abs_tol=_SAME) for value in moved
    )


def _with_logits(outputs: Any, logits: Tensor) -> Any:
    if isinstance(outputs, Tensor):
        return logits
    if hasattr(outputs, "_replace"):
        return outputs._replace(logits=logits)
    changed = copy.copy(outputs)
    if isinstance(outputs, Mapping):
        changed["logits"] = logits
    else:
        object.__setattr__(changed, "logits", logits)  # frozen ones too
    return changed


def feature_distance(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Compute how far a model's features are from its teacher's, as a share of the teacher's.

        mean over pairs of  mean((feature - teacher)^2) / mean(teacher^2)

    0 is equal, 1 is as far as a feature of zeros, whatever the network and the size of its numbers.

    Args:
        pairs: Features of model and teacher, of the same shape; at least one pair.

    Source:
        Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", section 2.2, without its regressor:
        a pruned model's channels are some of its teacher's.
    """
    shares = []
    for mine, theirs in pairs:
        wanted = theirs.float()
        size = wanted.square().mean().clamp_min(_FAINT)
        shares.append((mine.float() - wanted).square().mean() / size)
    return torch.stack(shares).mean()
