"""Which experiments go on, and how many epochs that costs: successive halving, known beforehand.

As it is usual (Jamieson and Talwalkar 2016, section 3), it looks after epochs 1, 2, 4, ...; that
would choose wrongly here. A pruned network that was repaired begins with most of its accuracy, and
the lower a learning rate, the less of that is lost at first, whatever it comes to in the end.
"""

from collections.abc import Mapping


def rungs(epochs: int, trials: int) -> tuple[tuple[int, int], ...]:
    """Plan after which epochs how many experiments go on.

    All run half of the epochs; the better half of them, rounded up, goes on for half of what
    remains, and so on, until one is left, which runs all epochs.

    Args:
        epochs: Of a whole experiment.
        trials: Experiments at the start.

    Returns:
        Pairs (epoch, experiments left after it), the last with all epochs.

    Example:
        >>> rungs(8, 4)
        ((4, 2), (6, 1), (8, 1))
        >>> rungs(1, 3)
        ((1, 3),)
    """
    marks: list[tuple[int, int]] = []
    left, mark = trials, (epochs + 1) // 2
    while left > 1 and mark < epochs:
        left = (left + 1) // 2
        marks.append((mark, left))
        mark += (epochs - mark + 1) // 2
    return (*marks, (epochs, left))


def total_epochs(epochs: int, trials: int) -> int:
    """Count the epochs that `rungs` costs in all, if no experiment fails.

    Example:
        >>> total_epochs(8, 4)  # 4 run four epochs, 2 of them two more, 1 the last two
        22
    """
    total, before, running = 0, 0, trials
    for until, left in rungs(epochs, trials):
        total += running * (until - before)
        before, running = until, left
    return total


def ranked(values: Mapping[int, float], *, higher_is_better: bool) -> list[int]:
    """Order experiments by their value, best first; of equals the one with the lower number."""
    sign = -1 if higher_is_better else 1
    return sorted(values, key=lambda number: (sign * values[number], number))
