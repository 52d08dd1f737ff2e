"""How far a network's confidence can be believed. N samples, K classes."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

BINS = 10


def reliability(probabilities: ArrayLike, labels: ArrayLike, bins: int = BINS) -> list[dict[str, float]]:
    """Return confidence, share of right verdicts and count for bins of equal width that are not empty.

    Takes probabilities [N,K] and labels [N]; a verdict's confidence is its class's probability.
    """
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    return [
        {
            "confidence": float(confidence[places == i].mean()),
            "right": float(right[places == i].mean()),
            "count": int((places == i).sum()),
        }
        for i in range(bins)
        if (places == i).any()
    ]


def calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = BINS) -> float:
    """Return the expected calibration error (arXiv 1706.04599, eq (3)): the mean gap, weighted by count."""
    rows = reliability(probabilities, labels, bins)
    total = sum(row["count"] for row in rows)
    return sum(row["count"] * abs(row["confidence"] - row["right"]) for row in rows) / total


def temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the number by which logits [N,K] must be divided so that labels [N] are the least surprising.

    Temperature scaling (arXiv 1706.04599, section 4.2): it changes confidence, never a verdict.
    """
    logits, scale = logits.detach().double(), torch.zeros((), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([scale], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(logits * scale.exp(), labels)
        loss.backward()
        return loss

    solver.step(closure)
    return float((-scale).exp())
