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
    return F.relu(norm_growth(eps, eps_ref)).mean()


def norm_growth(eps: Tensor, eps_ref: Tensor) -> Tensor:
    """Return ||eps|| / ||eps_ref|| - 1 of each sample [B,C,h,w]."""
    dims = (1, 2, 3)
    return torch.linalg.vector_norm(eps, dim=dims) / torch.linalg.vector_norm(eps_ref, dim=dims) - 1


def relative_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return ||a - b|| / ||b|| of each sample [B,C,h,w], then the mean; 0 where both are 0."""
    norm = torch.linalg.vector_norm(b, dim=(1, 2, 3)).clamp(min=torch.finfo(b.dtype).tiny)
    return (torch.linalg.vector_norm(a - b, dim=(1, 2, 3)) / norm).mean()


def ppo(log_p: Tensor, log_p_old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Return PPO's clipped loss per sample [B] (arXiv 1707.06347; for samplers DDPO, 2305.13301)."""
    ratio = (log_p - log_p_old).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def nft(x0_theta: Tensor, x0_old: Tensor, x0: Tensor, r: Tensor, mix: float, free: Tensor) -> Tensor:
    """Return DiffusionNFT's loss per sample [B] (arXiv 2509.16117) from predictions of x0 [B,C,h,w].

    r [B] in [0,1] says how good the picture x0 is: the positive policy (1 - mix) old + mix theta is drawn to
    it by r, the implicit negative one (1 + mix) old - mix theta by 1 - r. Both errors are divided by their
    own mean size, as in the authors' code, in place of a weight by time. free [B,C,h,w]: 1 where an element
    counts.
    """

    def error(prediction: Tensor) -> Tensor:
        size = masked_mean((prediction - x0).abs(), free).detach().clamp(min=1e-5)
        return masked_mean((prediction - x0).square(), free) / size

    positive = (1 - mix) * x0_old + mix * x0_theta
    negative = (1 + mix) * x0_old - mix * x0_theta
    return (r * error(positive) + (1 - r) * error(negative)) / mix


def dpo(won: Tensor, lost: Tensor, won_ref: Tensor, lost_ref: Tensor, strength: float) -> Tensor:
    """Return Diffusion-DPO's loss per pair [B] (arXiv 2311.12908) from mean squared noise errors [B]."""
    return -F.logsigmoid(-0.5 * strength * ((won - won_ref) - (lost - lost_ref)))


def masked_mean(values: Tensor, free: Tensor) -> Tensor:
    """Return each sample's mean [B] over the elements [B,C,h,w] where free is 1."""
    return (values * free).sum((1, 2, 3)) / free.sum((1, 2, 3)).clamp(min=1)
