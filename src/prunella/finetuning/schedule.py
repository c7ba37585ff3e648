"""The learning rate as a pure function of the step."""

import math
from typing import Literal, get_args

Decay = Literal["cosine", "linear", "step", "constant"]
DECAYS: tuple[Decay, ...] = get_args(Decay)


def warmup_steps(total: int, share: float) -> int:
    """Count the steps of warm-up: a share of all, at least one left for the rest."""
    return min(math.ceil(share * total), total - 1) if total > 1 else 0


def factor(step: int, total: int, *, decay: Decay, warmup: float) -> float:
    """Compute by what the learning rate is multiplied at a step.

    With w = warmup_steps(total, warmup), step s counted from 0:

        s < w:      (s + 1) / (w + 1)
        otherwise, with p = (s - w) / (total - w), 0 <= p < 1:
        cosine      (1 + cos(pi p)) / 2
        linear      1 - p
        step        1 for p < 1/2, 0.1 for p < 3/4, else 0.01
        constant    1

    Args:
        step: Steps made before this one; beyond the last it counts as the last.
        total: Steps planned in all.
        decay: Which of the formulas.
        warmup: Share of the steps that warm up.

    Example:
        >>> [round(factor(step, 4, decay="linear", warmup=0.0), 2) for step in range(4)]
        [1.0, 0.75, 0.5, 0.25]
    """
    step = min(step, total - 1)
    warm = warmup_steps(total, warmup)
    if step < warm:
        return (step + 1) / (warm + 1)
    done = (step - warm) / (total - warm)
    if decay == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    if decay == "linear":
        return 1 - done
    if decay == "step":
        return 1.0 if done < 1 / 2 else 0.1 if done < 3 / 4 else 0.01
    return 1.0
