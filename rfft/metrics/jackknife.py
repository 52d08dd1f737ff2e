"""Interval of a figure that is no mean."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from rfft.metrics.wilson import Z_95

MAX_GROUPS = 50  # that many evaluations of the figure at most


def jackknife_interval(
    estimate: float, statistic: Callable[[NDArray[np.int64]], float], n: int
) -> tuple[float, float]:
    """Normal 95 % interval around an estimate from n >= 2 independent rows, by leaving groups of them out.

    statistic: of the rows whose numbers it gets, each once. For figures of pairs of rows: the repeated rows
    of a bootstrap would raise KID and lower the Vendi score. The jackknife is right for U-statistics (Arvesen
    1969) and other smooth functions of means; of more than MAX_GROUPS rows it leaves out several at once, in
    turn (delete-a-group jackknife, Kott 2001).
    """
    rows, count = np.arange(n), min(n, MAX_GROUPS)
    values = np.array([statistic(rows[rows % count != group]) for group in range(count)])
    error = np.sqrt((count - 1) * values.var())
    return float(estimate - Z_95 * error), float(estimate + Z_95 * error)
