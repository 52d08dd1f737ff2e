"""Classifier-free guidance, of x0_hat and eps_hat alike: both are linear in what the network says."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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
    guided = Denoised(x0, eps)
    return keep_norm(guided, z, x, level) if level.keeps_norm else guided


def keep_norm(guided: Denoised, z: Denoised, x: Tensor, level: NoiseLevel) -> Denoised:
    """Return the guided pair with its velocity u = eps - x0 as long, in each token, as the prompt's own.

    As in diffusers' pipelines of Qwen-Image; a token is a patch of 2 x 2 latents of a flow.
    """
    velocity = guided.eps - guided.x0
    velocity = velocity * (_token_norm(z.eps - z.x0) / _token_norm(velocity))
    return Denoised(x - level.s * velocity, x + level.a * velocity)


def _token_norm(u: Tensor) -> Tensor:
    """Return the norm of each 2 x 2 patch of u [B,C,h,w] at all of its places, [B,1,h,w]."""
    squares = 4 * F.avg_pool2d(u.square().sum(1, keepdim=True), 2)
    positive = squares.clamp(min=torch.finfo(u.dtype).tiny)  # also where nothing moves
    return F.interpolate(positive.sqrt(), scale_factor=2.0)


def guidance_direction(eps_z: Tensor, eps_null: Tensor, s: Tensor) -> Tensor:
    """(7) Return g = -(eps_z - eps_null) / s, the gradient of log p(z | x): where the text steers."""
    return -(eps_z - eps_null) / s
