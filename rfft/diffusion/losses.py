"""The objective's terms, one short function each. Shapes: B batch, h w latent."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def f_ac(logits: Tensor, target: int = 0) -> Tensor:
    """(5) F_AC: cross-entropy of the reward network's logits [B,5] toward "available"."""
    labels = torch.full(logits.shape[:1], target, dtype=torch.long, device=logits.device)
    return F.cross_entropy(logits.float(), labels)


def l_kl(eps: Tensor, eps_ref: Tensor) -> Tensor:
    """(6) L_KL: KL(p_theta(x0_hat) || p_ref(x0_hat)) per latent element, from guided noise [B,4,h,w].

    Both are Gaussians of variance (1-ab)/ab about x0_hat, in whose difference that factor cancels.
    """
    return 0.5 * (eps - eps_ref).square().mean()


def l_cc(g: Tensor, g_ref: Tensor) -> Tensor:
    """(8) L_CC = ||g_theta - g_ref||_2 over all latent elements of a sample, then the mean over the batch."""
    return torch.linalg.vector_norm(g - g_ref, dim=(1, 2, 3)).mean()


def l_norm(eps: Tensor, eps_ref: Tensor) -> Tensor:
    """Return the hinge max(0, ||eps|| / ||eps_ref|| - 1) of each sample [B,C,h,w], then the mean.

    After NormGuard (arXiv 2606.27771), which penalises a flow's velocity; here it is the guided noise, which
    every family has.
    """
    growth = torch.linalg.vector_norm(eps, dim=(1, 2, 3)) / torch.linalg.vector_norm(eps_ref, dim=(1, 2, 3))
    return F.relu(growth - 1).mean()


def relative_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return ||a - b|| / ||b|| of each sample [B,C,h,w], then the mean; 0 where both are 0."""
    norm = torch.linalg.vector_norm(b, dim=(1, 2, 3)).clamp(min=torch.finfo(b.dtype).tiny)
    return (torch.linalg.vector_norm(a - b, dim=(1, 2, 3)) / norm).mean()
