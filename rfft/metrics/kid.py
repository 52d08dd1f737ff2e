"""Kernel inception distance (arXiv 1801.01401): how far pictures lie from reference ones.

Shapes: N pictures of P products, M reference pictures, D features, R resamples.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rfft.metrics.estimate import Estimate, product_draws

ROWS = 1024  # of the kernel matrix at a time


def polynomial_kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (x.y / D + 1)^3 for all pairs: [n,D], [m,D] -> [n,m]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kid(features: ArrayLike, products: NDArray[np.int64], reference: ArrayLike) -> Estimate:
    """Return the squared maximum mean discrepancy of pictures [N,D] to reference ones [M,D]; may be negative.

    Row n belongs to product products[n]; rows that are not finite do not count. At least two products and two
    reference pictures are needed. Unbiased: of the pairs of pictures those of one product do not count, as
    they are more alike than two draws from the model. Point and interval (cluster bootstrap; the reference
    counts as given) are the same function of how often each product is there; a product that was drawn twice
    makes no pair with itself.
    """
    x, y = np.asarray(features, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    known = np.asarray(np.isfinite(x).all(axis=1))
    x, member = np.where(known[:, None], x, 0), np.eye(products.max() + 1)[products] * known[:, None]  # [N,P]
    sizes = member.sum(axis=0)
    within, across = np.zeros((len(sizes), len(sizes))), np.zeros(len(sizes))
    for first in range(0, len(x), ROWS):
        rows = slice(first, first + ROWS)
        within += member[rows].T @ polynomial_kernel(x[rows], x) @ member
        across += member[rows].T @ polynomial_kernel(x[rows], y).mean(axis=1)
    np.fill_diagonal(within, 0)
    k_yy = polynomial_kernel(y, y)
    constant = (k_yy.sum() - np.trace(k_yy)) / (len(y) * (len(y) - 1))

    def discrepancy(times: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the estimate [R] for how often each product is there [R,P]."""
        pictures = times * sizes
        pairs = pictures.sum(axis=1) ** 2 - (pictures**2).sum(axis=1)
        with np.errstate(invalid="ignore"):  # one product alone, drawn P times
            inside = (times @ within * times).sum(axis=1) / pairs
        return inside + constant - 2 * (times @ across) / pictures.sum(axis=1)

    point = discrepancy(np.ones((1, len(sizes)), dtype=np.int64))[0]
    return Estimate(float(point), discrepancy(product_draws(len(sizes))))
