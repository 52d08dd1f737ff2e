"""Diffusion maths, tensors in and tensors out. Equation numbers are those of the README.

Shapes: B batch, h w latent, H W pixels. x, eps, x_o and noise are [B,4,h,w]; the mask M is [B,1,h,w].
alpha_bar (`ab`) is the cumulative product of 1 - beta. Step i goes from timestep tau_i to the next one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rfft.types import Batch, Denoise, Schedule


def predict_x0(x: Tensor, eps: Tensor, ab: Tensor) -> Tensor:
    """The clean latent that eps implies: x0_hat = (x - sqrt(1-ab) eps) / sqrt(ab)."""
    return (x - (1 - ab).sqrt() * eps) / ab.sqrt()


def add_noise(x0: Tensor, noise: Tensor, ab: Tensor) -> Tensor:
    """x0 noised to the level ab."""
    return ab.sqrt() * x0 + (1 - ab).sqrt() * noise


def ddim_step(x: Tensor, eps: Tensor, ab: Tensor, ab_next: Tensor) -> Tensor:
    """(1) One deterministic DDIM step."""
    return add_noise(predict_x0(x, eps, ab), eps, ab_next)


def inpaint(x: Tensor, x_o: Tensor, mask: Tensor) -> Tensor:
    """(2) Put the product's latent (noised as far as x is) back inside the mask."""
    return (1 - mask) * x + mask * x_o


def guide(eps_z: Tensor, eps_null: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance."""
    return eps_null + scale * (eps_z - eps_null)


def guidance_direction(eps_z: Tensor, eps_null: Tensor, ab: Tensor) -> Tensor:
    """(7) g, the direction in which the text steers: the gradient of log p(z | x)."""
    return -(eps_z - eps_null) / (1 - ab).sqrt()


def cfg_eps(denoiser: Denoise, x: Tensor, t: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """(eps_z, eps_null) in one batched forward; in x's precision, whatever autocast made of them."""
    eps = denoiser(torch.cat([x, x]), t, batch.null.cat(batch.z), torch.cat([batch.edges, batch.edges]))
    eps_null, eps_z = eps.to(x.dtype).chunk(2)
    return eps_z, eps_null


def advance(x: Tensor, eps: Tensor, i: int, batch: Batch, schedule: Schedule) -> Tensor:
    """DDIM step i with guided noise eps, then inpainting at the noise reached (none after the last)."""
    x = ddim_step(x, eps, schedule.alpha_bar[i], schedule.alpha_bar_next[i])
    last = i == len(schedule) - 1
    x_o = batch.x_o if last else add_noise(batch.x_o, batch.noise, schedule.alpha_bar[i + 1])
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
    """x at tau_stop from x at tau_start (default: all steps, from batch.noise to the clean latent).

    The numbers of diffusers' StableDiffusionControlNetInpaintPipeline (4-channel U-Net, strength 1, eta 0).
    """
    x = batch.noise if x is None else x
    for i in range(start, len(schedule) if stop is None else stop):
        eps_z, eps_null = cfg_eps(denoiser, x, schedule.timesteps[i], batch)
        x = advance(x, guide(eps_z, eps_null, guidance_scale), i, batch, schedule)
    return x


def paste(image: Tensor, product: Tensor) -> Tensor:
    """The product's own pixels [B,4,H,W] over image [B,3,H,W], through its straight alpha."""
    rgb, alpha = product[:, :3], product[:, 3:]
    return alpha * rgb + (1 - alpha) * image


def latent_mask(product: Tensor, size: tuple[int, int]) -> Tensor:
    """M [B,1,h,w]: 1 where all that a latent covers of the product [B,4,H,W] is more than half opaque.

    Diffusers samples one pixel of each latent; the edge would bring x_o's grey surroundings into the picture.
    """
    around = (product[:, 3:] <= 0.5).to(product.dtype)
    return 1 - F.adaptive_max_pool2d(around, size)
