"""Metrics for pictures of the real world: means of CLIP score and PickScore, and FID.

Shapes: N products and prompts, S seeds, P pictures, M reference pictures, D features.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from rfft.evaluation import summary
from rfft.metrics.estimate import Estimate
from rfft.metrics.fid import fid


def score_metrics(scores: Mapping[str, Tensor], products: summary.Products) -> summary.Estimates:
    """Return the means of scores [N,S] by name."""
    found: summary.Estimates = {}
    for name, values in scores.items():
        found |= summary.mean_metrics(name, values, products)
    return found


def fid_metrics(features: Tensor, reference: Tensor) -> summary.Estimates:
    """Return FID of pictures' features [P,D] to reference ones [M,D], if they are enough for a covariance.

    It has no interval: it is biased by how few the pictures are, and resampled ones are fewer still.
    """
    return {"fid": Estimate(fid(features, reference), np.empty(0))} if len(features) > 1 else {}
