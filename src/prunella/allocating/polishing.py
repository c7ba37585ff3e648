"""Better levels by small moves, priced exactly."""

from prunella.allocating.problem import Problem, State

_TOLERANCE = 1e-12
_PROBES = 15_000  # looks at one cluster's levels, in all


def give_back(problem: Problem, state: State) -> State:
    """Move one cluster after the other to a better level while the budget is kept.

    Args:
        problem: What is to be decided.
        state: A choice that keeps the budget.

    Returns:
        One that does no more damage.
    """
    at = list(state)
    problem.bill.put(at)
    while True:
        gain, c, level = _best_move(problem, at)
        if gain <= 0:
            return tuple(at)
        at[c] = level
        problem.bill.move(c, level)


def trade(problem: Problem, state: State) -> State:
    """Take channels from one cluster to give another more, as long as that gains something.

    Arguments and result are those of `give_back`.
    """
    look = 2 * len(state) ** 2
    for _ in range(_PROBES // look):
        problem.bill.put(state)
        found = _best_trade(problem, list(state))
        if found is None:
            break
        better = list(state)
        for c, level in found:
            better[c] = level
        state = give_back(problem, tuple(better))
    return state


def _best_move(problem: Problem, at: list[int]) -> tuple[float, int, int]:
    """Find the move of one cluster that saves most damage: (saved, cluster, level)."""
    best = (0.0, 0, 0)
    for c, loss in enumerate(problem.losses):
        gains = loss[at[c]] - loss
        if gains.max() > best[0] + _TOLERANCE:
            gains[~problem.bill.fitting(c)] = 0
            level = int(gains.argmax())
            best = max(best, (float(gains[level]), c, level))
    return best


def _best_trade(problem: Problem, at: list[int]) -> list[tuple[int, int]] | None:
    best, found = _TOLERANCE, None
    for c, loss in enumerate(problem.losses):
        for level in range(at[c] + 1, min(at[c] + 3, len(loss))):
            problem.bill.move(c, level)
            others = at.copy()
            others[c] = level
            gain, other, to = _best_move(problem, others)
            gain -= float(loss[level] - loss[at[c]])
            if other != c and gain > best:
                best, found = gain, [(c, level), (other, to)]
        problem.bill.move(c, at[c])
    return found
