"""Interval of a metric that repeated pictures would distort: products are left out, not drawn anew."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from rfft.metrics.estimate import Estimate

MAX_GROUPS = 50  # so many evaluations of the metric at most


def jackknife_estimate(statistic: Callable[[NDArray[np.int64]], float], products: int) -> Estimate:
    """Return a statistic of P products with its values when products are left out.

    statistic: takes the numbers of the products that stay, each once. The interval is the normal one of the
    delete-one jackknife, which is right for smooth functions of means (Arvesen 1969); of more than MAX_GROUPS
    products it leaves out several at a time, in turn (delete-a-group jackknife, Kott 2001).
    """
    every, count = np.arange(products), min(products, MAX_GROUPS)
    if products < 2:
        return Estimate(statistic(every), np.empty(0), "jackknife")
    values = [statistic(every[every % count != group]) for group in range(count)]
    return Estimate(statistic(every), np.array(values), "jackknife")
