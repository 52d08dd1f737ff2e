"""How well a machine's preferences agree with people's (PickScore, arXiv 2305.01569, section 4), N pairs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
THRESHOLDS = np.linspace(0, 1, 201)


def accuracy(first: Values, share: Values, tie: float) -> float:
    """Return how often a machine says what people say; half a point where just one of them sees a tie.

    first [N]: the machine's probability that the first picture is better, a tie where it and the second's
    differ by less than `tie`. share [N]: of people who prefer the first one; a tie where it is a half. NaN
    of a machine that failed is wrong.
    """
    margin = 2 * first - 1
    machine = np.where(np.abs(margin) < tie, 0, np.sign(margin))
    people = np.sign(share - 0.5)
    points = np.where(machine == people, 1.0, np.where((machine == 0) != (people == 0), 0.5, 0.0))
    return float(np.where(np.isfinite(first), points, 0.0).mean())


def best_tie(first: Values, share: Values) -> float:
    """Return the threshold with the best accuracy, of equally good ones the smallest."""
    return float(THRESHOLDS[int(np.argmax([accuracy(first, share, tie) for tie in THRESHOLDS]))])
