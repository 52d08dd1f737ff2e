"""Sampling with inpainting: tensors in, tensors out. Equation numbers are those of docs/method.md.

Shapes: B batch, C channels, h w latent. x, x0_hat, eps_hat, x_o and noise are [B,C,h,w]; the mask M is
[B,1,h,w]. A noise process is x = a x0 + s eps (see rfft/types.py); which one it is, nobody knows here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rfft.diffusion.guidance import guide
from rfft.types import Batch, Conditioning, Denoise, Denoised, Schedule


def add_noise(x0: Tensor, eps: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """Return a x0 + s eps. (1): from x0_hat and eps_hat it is the sampler's step to the level (a, s).

    For DDPM that is deterministic DDIM, for a rectified flow Euler's step.
    """
    return a * x0 + s * eps


def inpaint(x: Tensor, x_o: Tensor, mask: Tensor) -> Tensor:
    """(2) Put the product's latent (noised as far as x is) back inside the mask."""
    return (1 - mask) * x + mask * x_o


def denoise_twice(
    denoiser: Denoise, x: Tensor, i: int, batch: Batch, schedule: Schedule
) -> tuple[Denoised, Denoised]:
    """Return what the denoiser makes of x at step i for the prompt z and for null, by one batched forward."""
    both = denoiser(
        torch.cat([x, x]),
        schedule.level(i),
        Conditioning.pair(batch.null, batch.z),
        torch.cat([batch.edges, batch.edges]),
    )
    (x0_null, x0_z), (eps_null, eps_z) = both.x0.chunk(2), both.eps.chunk(2)
    return Denoised(x0_z, eps_z), Denoised(x0_null, eps_null)


def denoise_once(denoiser: Denoise, x: Tensor, i: int, batch: Batch, schedule: Schedule) -> Denoised:
    """Return what the denoiser makes of x at step i for the prompt z: all that guidance of scale 1 needs."""
    return denoiser(x, schedule.level(i), batch.z, batch.edges)


def advance(guided: Denoised, i: int, batch: Batch, schedule: Schedule) -> Tensor:
    """Take step i with the guided prediction, then inpaint at the noise reached (none after the last)."""
    return inpaint_next(
        add_noise(guided.x0, guided.eps, schedule.a_next[i], schedule.s_next[i]), i, batch, schedule
    )


def inpaint_next(x: Tensor, i: int, batch: Batch, schedule: Schedule) -> Tensor:
    """Inpaint what step i has led to, at the noise reached (none after the last)."""
    if i == len(schedule) - 1:
        return inpaint(x, batch.x_o, batch.mask)
    x_o = add_noise(batch.x_o, batch.noise, schedule.a[i + 1], schedule.s[i + 1])
    return inpaint(x, x_o, batch.mask)


@torch.no_grad()
def rollout(
    denoiser: Denoise,
    batch: Batch,
    schedule: Schedule,
    guidance_scale: float,
    start: int = 0,
    stop: int | None = None,
    x: Tensor | None = None,
) -> Tensor:
    """Return x at step `stop` from x at step `start`; by default batch.noise becomes the clean latent.

    The numbers are those of diffusers' ControlNet inpainting pipelines (4-channel U-Net, strength 1, eta 0).
    """
    x = batch.noise if x is None else x
    for i in range(start, len(schedule) if stop is None else stop):
        if guidance_scale == 1:  # null would change nothing, and bases with distilled guidance have none
            guided = denoise_once(denoiser, x, i, batch, schedule)
        else:
            z, null = denoise_twice(denoiser, x, i, batch, schedule)
            guided = guide(z, null, guidance_scale, x, schedule.level(i))
        x = advance(guided, i, batch, schedule)
    return x


def carry(schedule: Schedule, start: int, stop: int) -> Tensor:
    """Return dx_stop / dx_start along the sampler where what the network says is held, a scalar.

    DDIM holds the noise: by (1) with x0_hat = (x - s eps) / a that is a_stop / a_start. Euler's step on a
    rectified flow, whose a + s is 1, holds the velocity: 1. `stop` may be S, the clean end.
    """
    if is_flow(schedule):
        return torch.ones_like(schedule.a[0])
    a = torch.cat([schedule.a, schedule.a_next[-1:]])
    return a[stop] / a[start]


def coefficients(schedule: Schedule) -> Tensor:
    """Return the size [S] of each step's coefficient in the clean end, a sum over what the network says.

    With the noise held that is s / a - s_next / a_next, times the end's a; with a flow's velocity s - s_next.
    """
    if is_flow(schedule):
        return schedule.s - schedule.s_next
    return schedule.a_next[-1] * (schedule.s / schedule.a - schedule.s_next / schedule.a_next)


def is_flow(schedule: Schedule) -> bool:
    """Tell whether the noise process is a rectified flow, a + s = 1, at all steps."""
    return bool(torch.allclose(schedule.a + schedule.s, torch.ones_like(schedule.a)))


def ancestral(guided: Denoised, i: int, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Return mean [B,C,h,w] and standard deviation of the stochastic sampler's step i, DDIM with eta = 1.

    std^2 = (s_next / s)^2 (s^2 - (a / a_next)^2 s_next^2), the variance of DDPM's posterior (arXiv
    2010.02502, eq. 16), for any process x = a x0 + s eps; the mean has the noise that remains to s_next.
    """
    a, s, a_next, s_next = schedule.a[i], schedule.s[i], schedule.a_next[i], schedule.s_next[i]
    variance = ((s_next / s).square() * (s.square() - (a / a_next * s_next).square())).clamp(min=0)
    return add_noise(guided.x0, guided.eps, a_next, (s_next.square() - variance).sqrt()), variance.sqrt()


def log_probability(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return log N(x; mean, std^2) of each element [B,C,h,w]."""
    return -0.5 * ((x - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
