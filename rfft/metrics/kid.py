"""Kernel inception distance (arXiv 1801.01401): how far pictures lie from reference ones, features [N,D]."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rfft.metrics.jackknife import jackknife_interval

MAX_SUBSET = 1000


def polynomial_kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """(x.y / D + 1)^3 for all pairs: [n,D], [m,D] -> [n,m]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def mmd2(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Unbiased squared maximum mean discrepancy; may be negative. Needs two rows or more on each side."""
    return _mmd2(polynomial_kernel(x, x), polynomial_kernel(y, y), polynomial_kernel(x, y))


def _mmd2(k_xx: NDArray[np.float64], k_yy: NDArray[np.float64], k_xy: NDArray[np.float64]) -> float:
    n, m = k_xy.shape
    within_x = (k_xx.sum() - np.trace(k_xx)) / (n * (n - 1))
    within_y = (k_yy.sum() - np.trace(k_yy)) / (m * (m - 1))
    return float(within_x + within_y - 2 * k_xy.mean())


def kid(
    features: ArrayLike,
    reference: ArrayLike,
    subsets: int = 100,
    subset_size: int | None = None,
    seed: int = 0,
) -> tuple[float, float]:
    """Mean and standard deviation over random subsets, by default half of the smaller set (1000 at most)."""
    x, y = np.asarray(features, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    smaller = min(len(x), len(y))
    size = subset_size or min(MAX_SUBSET, smaller // 2)
    if not 2 <= size <= smaller:
        raise ValueError(f"KID cannot draw subsets of {size} from sets of {len(x)} and {len(y)} pictures")
    rng = np.random.default_rng(seed)
    values = [
        mmd2(x[rng.choice(len(x), size, replace=False)], y[rng.choice(len(y), size, replace=False)])
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def kid_interval(estimate: float, features: ArrayLike, reference: ArrayLike) -> tuple[float, float]:
    """95 % interval of a KID of pictures [N,S,D], S of each of N >= 2 independent prompts, to [M,D].

    Jackknife over the prompts; the reference pictures count as given.
    """
    grid, y = np.asarray(features, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    n, seeds = grid.shape[:2]
    x, cells = grid.reshape(n * seeds, -1), np.arange(n * seeds).reshape(n, seeds)
    k_xx, k_yy, k_xy = polynomial_kernel(x, x), polynomial_kernel(y, y), polynomial_kernel(x, y)

    def kid_of(prompts: NDArray[np.int64]) -> float:
        kept = cells[prompts].ravel()
        return _mmd2(k_xx[np.ix_(kept, kept)], k_yy, k_xy[kept])

    return jackknife_interval(estimate, kid_of, n)
