"""Stable Diffusion 1.x and 2.x: U-Net + ControlNet (canny) + latent inpainting.

Shapes: B batch, L tokens, D features, h w latent, H W pixels.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionControlNetInpaintPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from rfft.errors import UserError
from rfft.models.denoiser import UNetDenoiser
from rfft.models.families.base import Family
from rfft.models.pretrained import from_config, load_part, skeleton_part
from rfft.types import Conditioning, Schedule

TOKENS = 77  # of CLIP's text encoders


class StableDiffusion(Family):
    """A base that StableDiffusionControlNetInpaintPipeline loads, with a U-Net of 4 channels."""

    part = "unet"
    units = ("ResnetBlock2D", "BasicTransformerBlock")  # nearly all weights; two of them are a few percent
    pipeline: ClassVar[Any] = StableDiffusionControlNetInpaintPipeline
    components: ClassVar[tuple[str, ...]] = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    options: ClassVar[dict[str, Any]] = {"safety_checker": None, "requires_safety_checker": False}
    text_encoders: ClassVar[dict[str, Any]] = {"text_encoder": CLIPTextModel}

    def __init__(self, pipe: Any) -> None:
        """Take the diffusers pipeline; its scheduler becomes a deterministic DDIM one."""
        _check_shapes(pipe)
        pipe.scheduler = _ddim(pipe.scheduler)
        self.pipe, self.vae = pipe, pipe.vae
        self.denoiser = UNetDenoiser(pipe.unet, pipe.controlnet, pipe.scheduler.config.prediction_type)
        self.latent_factor, self.latent_channels = pipe.vae_scale_factor, pipe.vae.config.latent_channels
        self.fp32_vae = False

    # ---- loading ----

    @classmethod
    def recognizes(cls, pipeline: str) -> bool:
        return pipeline.startswith("StableDiffusion") and not pipeline.startswith("StableDiffusion3")

    @classmethod
    def load(cls, source: str, controlnet: str | None, dtype: torch.dtype) -> StableDiffusion:
        cls._check_components(source, controlnet)
        options = cls.options | {"torch_dtype": dtype, "use_safetensors": True}
        if controlnet is not None:
            options["controlnet"] = load_part("model.controlnet", ControlNetModel, controlnet, dtype)
        return cls(cls.pipeline.from_pretrained(source, **options))

    @classmethod
    def skeleton(cls, source: str, controlnet: str | None, dtype: torch.dtype) -> StableDiffusion:
        """Read the config files alone; the networks are on the meta device."""
        cls._check_components(source, controlnet)
        parts: dict[str, Any] = {"scheduler": from_config(DDIMScheduler, source, subfolder="scheduler")}
        with torch.device("meta"):
            parts |= {
                "unet": from_config(UNet2DConditionModel, source, subfolder="unet"),
                "vae": from_config(AutoencoderKL, source, subfolder="vae"),
                "controlnet": from_config(ControlNetModel, source, subfolder="controlnet")
                if controlnet is None
                else skeleton_part("model.controlnet", ControlNetModel, controlnet),
            }
            for name, kind in cls.text_encoders.items():
                parts[name] = kind(CLIPTextConfig.from_pretrained(source, subfolder=name))
        for part in parts.values():
            if isinstance(part, nn.Module):
                part.to(dtype)
        missing = set(cls.pipeline._get_signature_types()) - set(parts)
        index = DiffusionPipeline.load_config(source)
        settings = {
            name: value for name, value in index.items() if isinstance(value, bool) and name in missing
        }
        return cls(cls.pipeline(**parts, **(dict.fromkeys(missing) | settings)))

    @classmethod
    def _check_components(cls, source: str, controlnet: str | None) -> None:
        index = DiffusionPipeline.load_config(source)
        there = {name for name, kind in index.items() if isinstance(kind, list) and kind[0] is not None}
        if missing := [name for name in cls.components if name not in there]:
            raise ValueError(
                f"this {index['_class_name']} has no {', '.join(missing)}: a refiner, or another kind of "
                "model"
            )
        if controlnet is None and "controlnet" not in there:
            raise UserError(
                f"bundle {source} has no ControlNet: name one that fits it (canny edges) with "
                "model.controlnet"
            )

    # ---- use ----

    def networks(self) -> list[nn.Module]:
        own = (self.pipe.unet, self.pipe.controlnet, self.vae)
        return [*own, *(getattr(self.pipe, name) for name in self.text_encoders)]

    def schedule(self, steps: int) -> Schedule:
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
    def encode_prompts(self, prompts: list[str], size: int) -> tuple[Conditioning, list[str]]:
        ids, cut = tokenize(self.pipe.tokenizer, prompts)
        encoder = self.pipe.text_encoder
        return Conditioning(encoder(ids.to(encoder.device))[0]), cut

    def blank_conditioning(self, count: int) -> Conditioning:
        return Conditioning(torch.zeros(count, TOKENS, self.pipe.unet.config.cross_attention_dim))

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        with self._vae_precision(pixels.device):
            posterior = self.vae.encode((2 * pixels - 1).to(self.vae.dtype)).latent_dist
        return (posterior.mode() * self.vae.config.scaling_factor).to(pixels.dtype)

    def decode(self, latent: Tensor) -> Tensor:
        latent = latent / self.vae.config.scaling_factor
        with self._vae_precision(latent.device):
            pixels = self.vae.decode(latent.to(self.vae.dtype), return_dict=False)[0]
        return pixels.to(latent.dtype) / 2 + 0.5

    def enable_gradient_checkpointing(self) -> None:
        for module in (self.pipe.unet, self.pipe.controlnet, self.vae):
            module.enable_gradient_checkpointing()

    def _vae_precision(self, device: torch.device) -> AbstractContextManager[object]:
        kind = device.type
        half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
        return torch.autocast(kind, enabled=False) if self.fp32_vae and half else nullcontext()


def tokenize(tokenizer: Any, prompts: list[str]) -> tuple[Tensor, list[str]]:
    """Return token ids [B,L], and for each prompt the text behind the last token that there is room for."""
    limit = tokenizer.model_max_length
    ids = tokenizer(
        prompts, padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
    ).input_ids
    whole = tokenizer(prompts, verbose=False).input_ids
    # The last place within the limit is the end token's, and so is the last one of the whole.
    return ids, [tokenizer.decode(tokens[limit - 1 : -1]) for tokens in whole]


def _check_shapes(pipe: Any) -> None:
    """Raise UserError unless U-Net, VAE and ControlNet belong together."""
    unet, controlnet = pipe.unet.config, pipe.controlnet.config
    if unet.in_channels != pipe.vae.config.latent_channels:
        raise UserError(
            f"the bundle's U-Net takes {unet.in_channels} channels, as inpainting ones do: give a base whose "
            f"U-Net takes {pipe.vae.config.latent_channels}"
        )
    for name, what in (("cross_attention_dim", "text features"), ("block_out_channels", "channels")):
        if unet[name] != controlnet[name]:
            raise UserError(
                f"the ControlNet is for another base ({what} {controlnet[name]}, the U-Net's {unet[name]}): "
                "name one that fits with model.controlnet"
            )


def _ddim(scheduler: Any) -> DDIMScheduler:
    """Return a deterministic DDIM scheduler on the noise schedule of the given one."""
    ddim = DDIMScheduler.from_config(scheduler.config, clip_sample=False, thresholding=False)
    if ddim.config.prediction_type not in ("epsilon", "v_prediction") or ddim.config.rescale_betas_zero_snr:
        raise UserError("the bundle's scheduler must predict epsilon or v, without rescale_betas_zero_snr")
    return ddim
