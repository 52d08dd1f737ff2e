"""How different the backgrounds are that one product and prompt get from several seeds (features [N,D])."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine_similarity(features: Tensor) -> Tensor:
    """Return the cosine similarities [N,N] of features [N,D], in float64."""
    unit = F.normalize(features.double(), dim=1)
    return unit @ unit.T


def mean_pairwise_distance(features: Tensor) -> float:
    """Return the mean of 1 - cosine similarity over the pairs of N >= 2 pictures, from their features [N,D].

    Raises ValueError for fewer.
    """
    n = len(features)
    if n < 2:
        raise ValueError("diversity needs two pictures or more of one product and prompt")
    rows, columns = torch.triu_indices(n, n, offset=1)
    return float((1 - cosine_similarity(features)[rows, columns]).mean())


def vendi_score(features: Tensor) -> float:
    """Return the effective number of different pictures, 1 to N, from their features [N,D].

    It is exp of the entropy of the eigenvalues of the cosine kernel / N (Friedman and Dieng, arXiv
    2210.02410).
    """
    unit = F.normalize(features.double(), dim=1)
    kernel = unit @ unit.T if len(unit) <= unit.shape[1] else unit.T @ unit  # but for zeros of one spectrum
    eigenvalues = torch.linalg.eigvalsh(kernel / len(unit)).clamp_min(0)
    return float(torch.exp(torch.special.entr(eigenvalues).sum()))
