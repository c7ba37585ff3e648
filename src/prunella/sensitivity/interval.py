"""Where a mean must lie when only some of the numbers are known, with a stated confidence.

Source: Waudby-Smith, Ramdas 2024, "Estimating means of bounded random variables by betting",
section 5 (numbers drawn without replacement), with the bets of section 4.2. One plays against
every mean at once: whoever bets that the numbers are higher (or lower) than this mean would have
them, and is right, gets rich; a mean against which one would have made 1 / (1 - confidence) of a
stake is out. That holds however often one looks, for numbers of any distribution within bounds.
"""

import math

import numpy as np

_POINTS = 2001
_MOST = 0.5  # of the stake that one bet can lose


class Interval:
    """The mean of so many numbers in [0, 1], of which more and more become known.

    Args:
        count: How many numbers there are.
        confidence: With which the mean lies within the bounds at all times, in (0, 1).
    """

    def __init__(self, count: int, confidence: float) -> None:
        self._count = count
        self._rich = math.log(2 / (1 - confidence))  # half of the stake on higher, half on lower
        self._means = np.linspace(0.0, 1.0, _POINTS)
        self._gains = np.zeros((2, _POINTS))
        self._known = 0
        self._sum = 0.0
        self._spread = 0.25  # sum of squares around the means so far, and one such in advance

    def add(self, numbers: np.ndarray) -> None:
        """Learn of more numbers, drawn at random from those not known."""
        x = np.asarray(numbers, dtype=np.float64)
        n = self._known + 1 + np.arange(len(x))  # the number of each draw
        sums = self._sum + np.concatenate([[0.0], np.cumsum(x)])
        centres = (0.5 + sums[1:]) / (n + 1)
        squares = self._spread + np.concatenate([[0.0], np.cumsum((x - centres) ** 2)])
        bets = np.sqrt(2 * self._rich / squares[:-1])
        # What a mean leaves for the mean of the numbers not known before each draw.
        left = (self._count * self._means - sums[:-1, None]) / (self._count - n + 1)[:, None]
        possible = ((left >= -1e-9) & (left <= 1 + 1e-9)).all(0)
        left = left.clip(1e-9, 1 - 1e-9)
        high = np.minimum(bets[:, None], _MOST / left)
        low = np.minimum(bets[:, None], _MOST / (1 - left))
        off = x[:, None] - left
        gains = np.stack([np.log1p(high * off), np.log1p(-low * off)]).cumsum(1)
        gains += self._gains[:, None]
        alive = possible & (gains.max((0, 1)) < self._rich)
        self._known, self._sum, self._spread = int(n[-1]), float(sums[-1]), float(squares[-1])
        if alive.any():  # else rounding or the grid is to blame: what was known stays
            self._means, self._gains = self._means[alive], gains[:, -1, alive]

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and highest mean that are not out."""
        if self._known == self._count:
            return self._sum / self._count, self._sum / self._count
        step = 1 / (_POINTS - 1)
        return max(float(self._means[0]) - step, 0.0), min(float(self._means[-1]) + step, 1.0)
