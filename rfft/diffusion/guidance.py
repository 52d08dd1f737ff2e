"""Classifier-free guidance, of x0_hat and eps_hat alike: both are linear in what the network says."""

from __future__ import annotations

import torch
from torch import Tensor

from rfft.types import Denoised, NoiseLevel


def guide(z: Denoised, null: Denoised, scale: float, x: Tensor, level: NoiseLevel) -> Denoised:
    """Return the pair for the guided noise null + scale (z - null) (arXiv 2207.12598) in x at this level.

    Its x0_hat follows from x = a x0 + s eps, as in diffusers, which rounds less than guiding x0_hat; in a
    flow's pure noise, where a = 0, x0_hat is guided itself.
    """
    eps = null.eps + scale * (z.eps - null.eps)
    implied = (x - level.s * eps) / level.a.clamp(min=torch.finfo(x.dtype).tiny)
    x0 = torch.where(level.a > 0, implied, null.x0 + scale * (z.x0 - null.x0))
    return Denoised(x0, eps)


def guidance_direction(eps_z: Tensor, eps_null: Tensor, s: Tensor) -> Tensor:
    """(7) Return g = -(eps_z - eps_null) / s, the gradient of log p(z | x): where the text steers."""
    return -(eps_z - eps_null) / s
