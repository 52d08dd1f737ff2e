"""Recurrent generation: how often one has to try."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def attempts(accepted: ArrayLike) -> dict[str, Any]:
    """Verdicts [P products, K attempts] -> figures of retrying until the first accepted picture.

    success_at[k-1] is the share of products with an accepted picture within k attempts, `accepted` the share
    within all K, `mean` the attempts per product (K where none was accepted). What follows the first accepted
    attempt does not matter.
    """
    accepted = np.asarray(accepted, dtype=bool)
    within = np.logical_or.accumulate(accepted, axis=1)
    made = accepted.shape[1] - within[:, :-1].sum(axis=1)
    return {
        "success_at": within.mean(axis=0).tolist(),
        "accepted": float(within[:, -1].mean()),
        "mean": float(made.mean()),
    }
