"""What a network predicts, as the pair that the maths takes: x0_hat and eps_hat of x = a x0 + s eps."""

from __future__ import annotations

from torch import Tensor

from rfft.types import Denoised


def from_epsilon(x: Tensor, eps: Tensor, a: Tensor, s: Tensor) -> Denoised:
    """Return the pair that a predicted noise implies: x0_hat = (x - s eps) / a."""
    return Denoised((x - s * eps) / a, eps)


def from_v(x: Tensor, v: Tensor, a: Tensor, s: Tensor) -> Denoised:
    """Return the pair that v = a eps - s x0 implies (arXiv 2202.00512), where a^2 + s^2 = 1."""
    return Denoised(a * x - s * v, s * x + a * v)


def from_velocity(x: Tensor, u: Tensor, sigma: Tensor) -> Denoised:
    """Return the pair that a flow's velocity u = eps - x0 implies, where a = 1 - sigma and s = sigma."""
    return Denoised(x - sigma * u, x + (1 - sigma) * u)
