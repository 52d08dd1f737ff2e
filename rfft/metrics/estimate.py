"""A metric of a grid of pictures, with what resampling the products of that grid says about it.

Pictures of one product (its prompts and seeds) are not independent, so the unit of every interval is the
product. P products, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rfft.metrics.wilson import Z_95, wilson_interval

Method = Literal["bootstrap", "jackknife"]
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A metric's value and its values on resampled products.

    Two models on one grid are resampled alike, so the difference of their estimates is a paired one.
    """

    value: float
    replicates: NDArray[np.float64]  # [R]; empty where there is but one product
    method: Method = "bootstrap"
    exact: tuple[float, float] | None = (
        None  # the interval, where all products agree and resampling sees none
    )

    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % interval, or None where there are not two products to resample."""
        if self.exact is not None:
            return self.exact
        known = self.replicates[np.isfinite(self.replicates)]
        if len(known) < 2:
            return None
        if self.method == "jackknife":
            error = Z_95 * np.sqrt((len(known) - 1) * known.var())
            return float(self.value - error), float(self.value + error)
        low, high = np.percentile(known, [2.5, 97.5])
        return float(low), float(high)

    def __sub__(self, other: Estimate) -> Estimate:
        """Return the paired difference to another model's estimate on the same grid."""
        if self.method != other.method or len(self.replicates) != len(other.replicates):
            raise ValueError("only estimates of the same products by the same method can be paired")
        return Estimate(self.value - other.value, self.replicates - other.replicates, self.method)


@cache
def product_draws(products: int, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.int64]:
    """Return how often each product is in each bootstrap sample, [R,P]: the same for every model.

    Of fewer than two products there are no samples, R = 0.
    """
    if products < 2:
        return np.zeros((0, products), dtype=np.int64)
    shares = np.full(products, 1 / products)
    draws = np.random.default_rng(seed).multinomial(products, shares, size=resamples)
    draws.flags.writeable = False  # all metrics have the same
    return draws


def mean_estimate(values: ArrayLike, products: NDArray[np.int64]) -> Estimate:
    """Return the mean of the values [N] or [N,S] that are finite; row n belongs to product products[n].

    The interval is a cluster bootstrap (Davison and Hinkley 1997, section 3.8): whole products are drawn.
    """
    rows = np.asarray(values, dtype=np.float64).reshape(len(products), -1)
    known = np.isfinite(rows)
    sums = np.bincount(products, np.where(known, rows, 0).sum(axis=1))
    counts = np.bincount(products, known.sum(axis=1))
    draws = product_draws(len(sums))
    with np.errstate(invalid="ignore"):  # 0 / 0: a sample of products without a value
        value = np.float64(sums.sum()) / np.float64(counts.sum())
        return Estimate(float(value), (draws @ sums) / (draws @ counts))


def share_estimate(hits: ArrayLike, products: NDArray[np.int64]) -> Estimate:
    """Return the share of ones among the ones and zeros [N] or [N,S]; NaN does not count.

    Where all products agree on 0 or 1, drawing them again shows no spread: the interval is then Wilson's, for
    as many trials as there are products.
    """
    found = mean_estimate(hits, products)
    if len(found.replicates) == 0 or found.value not in (0.0, 1.0):
        return found
    known = np.isfinite(np.asarray(hits, dtype=np.float64)).reshape(len(products), -1).any(axis=1)
    count = len(np.unique(products[known]))
    return replace(found, exact=wilson_interval(round(found.value * count), count))


def mean_of(estimates: list[Estimate]) -> Estimate:
    """Return the mean of several bootstrap estimates of one grid; a resample counts those it has."""
    replicates = np.stack([estimate.replicates for estimate in estimates])
    known = np.isfinite(replicates)
    with np.errstate(invalid="ignore"):
        means = np.where(known, replicates, 0).sum(axis=0) / known.sum(axis=0)
    return Estimate(float(np.mean([estimate.value for estimate in estimates])), means)
