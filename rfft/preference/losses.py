"""What the networks learn people's opinions by. B examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def preference_loss(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """Return KL(people || machine) [B] of two pictures' scores [B] (PickScore, arXiv 2305.01569, equation 2).

    share [B]: of people who prefer the first one; 1, 0, or a half for a tie. The machine's probability is
    softmax over the two scores; the loss is 0 where it is people's share.
    """
    log_first, log_second = F.logsigmoid(first - second), F.logsigmoid(second - first)
    entropy = -(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share))
    return -(share * log_first + (1 - share) * log_second) - entropy


def squared_emd(logits: Tensor, shares: Tensor) -> Tensor:
    """Return the squared earth mover's distance [B] of ordered classes (arXiv 1611.05916, equation 5).

    logits and shares [B,K]: the machine's, and what part of people gave each score. It is the mean over the
    classes of the cumulated distributions' squared differences.
    """
    difference = logits.softmax(-1).cumsum(-1) - shares.cumsum(-1)
    return difference.square().mean(-1)


def frequency_weights(first: Sequence[str], second: Sequence[str]) -> Tensor:
    """Return a weight [N] for each pair, inverse to how often its pictures, or prompts, occur; 1 on average.

    A pair weighs the mean of 1 / count over its two names.
    """
    counts = Counter([*first, *second])
    weights = torch.tensor([(1 / counts[a] + 1 / counts[b]) / 2 for a, b in zip(first, second, strict=True)])
    return weights / weights.mean()
