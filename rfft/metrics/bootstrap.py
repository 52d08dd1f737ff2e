"""Interval of a mean whose distribution is unknown."""

import numpy as np
import torch
from numpy.typing import ArrayLike


def bootstrap_interval(
    values: ArrayLike, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap (Efron 1979) of the mean of independent values [N] (one per product, say).

    Of values [N,A], of the mean of the A columns' means; NaN is no value.
    """
    rows = np.asarray(values, dtype=np.float64)
    rows = rows.reshape(len(rows), -1)
    drawn = rows[np.random.default_rng(seed).integers(len(rows), size=(resamples, len(rows)))]
    means = torch.from_numpy(drawn).nanmean(dim=1).nanmean(dim=1)
    tail = 50 * (1 - confidence)
    low, high = np.nanpercentile(means, [tail, 100 - tail])
    return float(low), float(high)
