"""Recurrent generation: how often one has to try."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def attempts(accepted: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Verdicts [P products, K attempts] -> attempts made for each product [P], K where none was accepted; and
    how many products have an accepted picture within 1 .. K attempts [K].

    What follows the first accepted attempt does not matter.
    """
    accepted = np.asarray(accepted, dtype=bool)
    within = np.logical_or.accumulate(accepted, axis=1)
    made = accepted.shape[1] - within[:, :-1].sum(axis=1)
    return made, within.sum(axis=0)
