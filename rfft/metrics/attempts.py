"""Recurrent generation: how often one has to try."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def attempts(accepted: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return how many attempts each product took [P], K where none was accepted, from verdicts [P,K].

    And whether each has an accepted picture within 1 .. K attempts [P,K]; what follows the first accepted one
    does not matter.
    """
    accepted = np.asarray(accepted, dtype=bool)
    within = np.logical_or.accumulate(accepted, axis=1)
    made = accepted.shape[1] - within[:, :-1].sum(axis=1)
    return made, within
