"""Stable Diffusion 1.x and 2.x: U-Net + ControlNet (canny) + latent inpainting.

Shapes: B batch, L tokens, D features, h w latent, H W pixels.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import DDIMScheduler, StableDiffusionControlNetInpaintPipeline, UNet2DConditionModel
from transformers import CLIPTextModel

from rfft.errors import UserError
from rfft.models.denoiser import UNetDenoiser
from rfft.models.families.pipeline import PipelineFamily, check_fit, tokenize
from rfft.types import Conditioning, Schedule, Size

TOKENS = 77  # of CLIP's text encoders


class StableDiffusion(PipelineFamily):
    """A base that StableDiffusionControlNetInpaintPipeline loads, with a U-Net of 4 channels."""

    part = "unet"
    units = ("ResnetBlock2D", "BasicTransformerBlock")  # nearly all weights; two of them are a few percent
    pipeline: ClassVar[Any] = StableDiffusionControlNetInpaintPipeline
    denoiser_kind = UNet2DConditionModel
    scheduler_kind = DDIMScheduler
    text_encoders: ClassVar[dict[str, Any]] = {"text_encoder": CLIPTextModel}
    required: ClassVar[tuple[str, ...]] = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    options: ClassVar[dict[str, Any]] = {"safety_checker": None, "requires_safety_checker": False}

    def __init__(self, pipe: Any, controlnet: Any = None) -> None:
        """Take the diffusers pipeline; its scheduler becomes a deterministic DDIM one."""
        super().__init__(pipe, controlnet)
        _check_shapes(pipe, self.controlnet)
        pipe.scheduler = _ddim(pipe.scheduler)
        self.denoiser = UNetDenoiser(pipe.unet, self.controlnet, pipe.scheduler.config.prediction_type)

    @classmethod
    def recognizes(cls, pipeline: str) -> bool:
        return pipeline.startswith("StableDiffusion") and not pipeline.startswith("StableDiffusion3")

    def schedule(self, steps: int, size: Size | None) -> Schedule:
        """Return DDIM's steps with a = sqrt(alpha_bar), s = sqrt(1 - alpha_bar)."""
        scheduler = self.pipe.scheduler
        known = scheduler.config.num_train_timesteps
        if steps >= known:  # diffusers may count them from 1
            raise UserError(f"rollout.steps={steps}: the bundle knows {known} timesteps; set fewer steps")
        scheduler.set_timesteps(steps)
        timesteps = scheduler.timesteps
        following = timesteps - known // steps
        alpha_bar = scheduler.alphas_cumprod
        after = torch.where(following >= 0, alpha_bar[following.clamp(min=0)], scheduler.final_alpha_cumprod)
        now = alpha_bar[timesteps]
        return Schedule(timesteps, now.sqrt(), (1 - now).sqrt(), after.sqrt(), (1 - after).sqrt())

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str], size: Size) -> tuple[Conditioning, list[str]]:
        ids, cut = tokenize(self.pipe.tokenizer, prompts)
        encoder = self.pipe.text_encoder
        return Conditioning(encoder(ids.to(encoder.device))[0]), cut

    def blank_conditioning(self, count: int) -> Conditioning:
        return Conditioning(torch.zeros(count, TOKENS, self.pipe.unet.config.cross_attention_dim))


def _check_shapes(pipe: Any, controlnet: Any) -> None:
    """Raise UserError unless U-Net, VAE and ControlNet belong together."""
    unet = pipe.unet.config
    if unet.in_channels != pipe.vae.config.latent_channels:
        raise UserError(
            f"the bundle's U-Net takes {unet.in_channels} channels, as inpainting ones do: give a base whose "
            f"U-Net takes {pipe.vae.config.latent_channels}"
        )
    same = ("cross_attention_dim", "text features"), ("block_out_channels", "channels")
    check_fit(unet, controlnet.config, same)


def _ddim(scheduler: Any) -> DDIMScheduler:
    """Return a deterministic DDIM scheduler on the noise schedule of the given one."""
    ddim = DDIMScheduler.from_config(scheduler.config, clip_sample=False, thresholding=False)
    if ddim.config.prediction_type not in ("epsilon", "v_prediction") or ddim.config.rescale_betas_zero_snr:
        raise UserError("the bundle's scheduler must predict epsilon or v, without rescale_betas_zero_snr")
    return ddim
