"""Prompt alignment: does a picture show what its prompt asked for?"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike


def alignment(read: Mapping[str, ArrayLike], asked: Mapping[str, ArrayLike]) -> dict[str, float]:
    """Accuracy of what the probe read against what was asked (classes [N] per attribute), and the `mean`."""
    shares = {name: float(np.mean(np.asarray(read[name]) == np.asarray(asked[name]))) for name in asked}
    return {**shares, "mean": float(np.mean(list(shares.values())))}
