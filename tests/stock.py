"""What diffusers' own inpainting pipelines paint, to compare with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rfft.models.bundle import Bundle
from rfft.types import Batch


def stock_picture(pipe: Any, batch: Batch, steps: int, guidance_scale: float, output: str = "pt") -> Tensor:
    """From the batch's embeddings and noise, before the product's own pixels are pasted.

    `output`: pt for pictures [B,3,H,W] in [0,1], latent for latents [B,4,h,w].
    """
    pooled = {}
    if "text_embeds" in batch.z.added:
        pooled = {
            "pooled_prompt_embeds": batch.z.added["text_embeds"],
            "negative_pooled_prompt_embeds": batch.null.added["text_embeds"],
        }
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        prompt_embeds=batch.z.hidden,
        negative_prompt_embeds=batch.null.hidden,
        **pooled,
        image=_pixels(batch),
        # Theirs is what to paint, ours what to keep.
        mask_image=F.interpolate(1 - batch.mask, batch.product.shape[-2:]),
        control_image=batch.edges,
        latents=batch.noise,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        controlnet_conditioning_scale=1.0,
        strength=1.0,
        generator=torch.Generator().manual_seed(0),
        output_type=output,
    ).images


def with_drawn_latent(bundle: Bundle, batch: Batch) -> Batch:
    """The pipeline draws the product's latent from the VAE's posterior: draw the same one."""
    posterior = bundle.family.vae.encode(_pixels(batch)).latent_dist
    drawn = posterior.sample(torch.Generator().manual_seed(0)) * bundle.family.vae.config.scaling_factor
    return replace(batch, x_o=drawn.detach())


def _pixels(batch: Batch) -> Tensor:
    """The product on black, [B,3,H,W] in [-1,1]."""
    return 2 * batch.product[:, :3] * batch.product[:, 3:] - 1
