"""Which of several models is preferred, from scores of their pictures of the same prompts.

Shapes: M models, N pictures.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rfft.metrics.library import torchmetrics


def win_rates(scores: Tensor, tie: float) -> Tensor:
    """Return the share [M,M] of the N prompts at which the row's model beats the column's; a tie counts half.

    `scores` [M,N] are logits, as PickScore gives them, so that of two pictures the first is preferred with
    probability p = sigmoid(difference) (arXiv 2305.01569). It is a tie if p and 1 - p differ by less than
    `tie`.
    """
    p = torch.sigmoid(scores[:, None] - scores[None])
    margin = 2 * p - 1
    won = (margin > 0).to(p.dtype)
    undecided = (margin.abs() < tie) | (margin == 0)
    return torch.where(undecided, 0.5, won).mean(-1)


def overall(rates: Tensor) -> Tensor:
    """Return each model's win rate against all others [M], from the rates of pairs [M,M]."""
    return (rates.sum(1) - rates.diagonal()) / (len(rates) - 1)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation of two measures of the same M models.

    It is None where one of the measures ranks nothing.
    """
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    pair = torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64)
    return float(torchmetrics("functional").spearman_corrcoef(*pair))
