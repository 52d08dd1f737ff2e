"""Classifier-free guidance, of x0_hat and eps_hat alike: both are linear in what the network says."""

from __future__ import annotations

from torch import Tensor

from rfft.types import Denoised


def guide(z: Denoised, null: Denoised, scale: float) -> Denoised:
    """Return null + scale (z - null) (arXiv 2207.12598), of both parts of the pair."""
    return Denoised(null.x0 + scale * (z.x0 - null.x0), null.eps + scale * (z.eps - null.eps))


def guidance_direction(eps_z: Tensor, eps_null: Tensor, s: Tensor) -> Tensor:
    """(7) Return g = -(eps_z - eps_null) / s, the gradient of log p(z | x): where the text steers."""
    return -(eps_z - eps_null) / s
