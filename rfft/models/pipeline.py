"""A Stable Diffusion + ControlNet inpainting pipeline as RFFT uses it.

Shapes: B batch, h w latent, H W pixels. Pictures in [0, 1]; latents carry the VAE's scaling factor.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderTiny,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetInpaintPipeline,
)
from diffusers.utils import logging as diffusers_logging
from peft import get_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from rfft.errors import UserError
from rfft.models import lora, text
from rfft.models.denoiser import Denoiser
from rfft.models.pipeline_source import (
    cannot_load,
    cannot_load_part,
    check_shapes,
    pipeline_class,
    source_of,
)
from rfft.types import Conditioning, Denoise, Schedule

MODES = ("unet_lora", "controlnet_lora", "controlnet")


class Bundle:
    """The generator. A trainer may replace `denoiser` by its wrapped form (DDP, compiled)."""

    def __init__(self, pipe: Any) -> None:
        """Freezes a StableDiffusion(XL)ControlNetInpaintPipeline; its scheduler becomes a DDIM one."""
        check_shapes(pipe)
        pipe.scheduler = _ddim(pipe.scheduler)
        self.pipe = pipe
        self.vae = pipe.vae
        self.modules: list[nn.Module] = [pipe.unet, pipe.controlnet, pipe.vae, *text.text_encoders(pipe)]
        for module in self.modules:
            module.requires_grad_(False).eval()
        # SDXL's autoencoder overflows in fp16, as its config says (that of SD 1.5 says so and does not).
        self.fp32_vae = text.is_xl(pipe) and bool(pipe.vae.config.force_upcast)
        if self.fp32_vae:
            pipe.vae.float()
        self.unwrapped = Denoiser(pipe.unet, pipe.controlnet, pipe.scheduler)
        self.denoiser: Denoise = self.unwrapped
        self.frozen_controlnet: ControlNetModel | None = None
        self.tiny_vae: AutoencoderTiny | None = None
        self.modes: list[str] = []

    @property
    def device(self) -> torch.device:
        return self.pipe.unet.device

    @property
    def latent_factor(self) -> int:
        """Pixels per latent element along each side."""
        return self.pipe.vae_scale_factor

    def to(self, device: torch.device | str) -> Bundle:
        for module in [*self.modules, self.unwrapped, self.frozen_controlnet]:
            if module is not None:
                module.to(device)
        return self

    def schedule(self, steps: int) -> Schedule:
        """The DDIM steps that diffusers would make, on this bundle's device."""
        scheduler = self.pipe.scheduler
        known = scheduler.config.num_train_timesteps
        if steps >= known:  # diffusers may count them from 1
            raise UserError(f"rollout.steps={steps}: the bundle knows {known} timesteps; set fewer steps")
        scheduler.set_timesteps(steps)
        timesteps = scheduler.timesteps
        following = timesteps - known // steps
        alpha_bar = scheduler.alphas_cumprod
        after = torch.where(following >= 0, alpha_bar[following.clamp(min=0)], scheduler.final_alpha_cumprod)
        return Schedule(timesteps, alpha_bar[timesteps], after).to(self.device)

    # ---- encoders ----

    def encode_prompts(self, prompts: list[str], size: int) -> tuple[Conditioning, list[str]]:
        """Text features for pictures of size x size pixels, and what had to be cut off each prompt's end."""
        return text.encode(self.pipe, prompts, size)

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """Latent [B,4,h,w] (the posterior's mean, so always the same) of pixels [B,3,H,W]."""
        with self._vae_precision():
            posterior = self.vae.encode((2 * pixels - 1).to(self.vae.dtype)).latent_dist
        return (posterior.mode() * self.vae.config.scaling_factor).to(pixels.dtype)

    def decode(self, latent: Tensor) -> Tensor:
        """Pixels [B,3,H,W], not clamped, of latent [B,4,h,w]."""
        latent = latent / self.vae.config.scaling_factor
        with self._vae_precision():
            pixels = self.vae.decode(latent.to(self.vae.dtype), return_dict=False)[0]
        return pixels.to(latent.dtype) / 2 + 0.5

    def preview(self, latent: Tensor) -> Tensor:
        """decode() for the training step: by the small decoder, if there is one."""
        if self.tiny_vae is None:
            return self.decode(latent)
        latent = latent / self.tiny_vae.config.scaling_factor
        pixels = self.tiny_vae.decode(latent.to(self.tiny_vae.dtype), return_dict=False)[0]
        return pixels.to(latent.dtype) / 2 + 0.5

    def set_tiny_vae(self, tiny: AutoencoderTiny) -> None:
        """Decode in the training step with a small distilled decoder (TAESD, say), frozen."""
        config = tiny.config
        factor = config.upsampling_scaling_factor ** (len(config.num_decoder_blocks) - 1)
        own = self.latent_factor, self.vae.config.latent_channels
        if (factor, config.latent_channels) != own:
            raise UserError(
                f"model.tiny_vae enlarges {config.latent_channels} channels {factor} times, the bundle's own "
                f"decoder {own[1]} channels {own[0]} times: name one that was distilled from it"
            )
        self.tiny_vae = tiny.requires_grad_(False).eval()
        self.modules.append(self.tiny_vae)

    def _vae_precision(self) -> AbstractContextManager[object]:
        kind = self.device.type
        half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
        return torch.autocast(kind, enabled=False) if self.fp32_vae and half else nullcontext()

    # ---- training ----

    def train(self, modes: list[str], rank: int, alpha: float, target_modules: list[str]) -> None:
        """Make trainable, in fp32: LoRA adapters on the U-Net or ControlNet, or the whole ControlNet."""
        if not modes or set(modes) - set(MODES):
            raise UserError(f"model.train {modes}: give one or more of {', '.join(MODES)}")
        if {"controlnet", "controlnet_lora"} <= set(modes):
            raise UserError("model.train: controlnet trains all of the ControlNet; leave out controlnet_lora")
        self.modes = list(modes)
        if "unet_lora" in modes:
            lora.attach(self.pipe.unet, rank, alpha, target_modules)
        if "controlnet_lora" in modes:
            lora.attach(self.pipe.controlnet, rank, alpha, target_modules)
        if "controlnet" in modes:
            self.frozen_controlnet = copy.deepcopy(self.pipe.controlnet)
            self.pipe.controlnet.float().requires_grad_(True)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass: U-Net, ControlNet and VAE decoder."""
        for module in (self.pipe.unet, self.pipe.controlnet, self.tiny_vae or self.vae):
            module.enable_gradient_checkpointing()

    def same_input(self) -> AbstractContextManager[None]:
        """Within it, the denoiser's calls differ in what is trained alone: the rest is computed once."""
        return self.unwrapped.encoder_once()

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The model before training: adapters off, the ControlNet's frozen copy in its place."""
        trained = self.unwrapped.controlnet
        self.unwrapped.controlnet = self.frozen_controlnet or trained
        try:
            with lora.adapters_off(self.unwrapped):
                yield
        finally:
            self.unwrapped.controlnet = trained

    @contextmanager
    def merged(self) -> Iterator[None]:
        """The trained model with adapters merged into the weights, for forwards without gradient."""
        with lora.merged(self.unwrapped):
            yield

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.unwrapped.named_parameters() if p.requires_grad}

    def adapter_state_dict(self) -> dict[str, Tensor]:
        """The trained tensors themselves, not copies, under `unet.` or `controlnet.`.

        LoRA tensors carry peft's names (...lora_A.weight), those that diffusers' load_lora_weights reads.
        """
        state: dict[str, Tensor] = {}
        for name, module in (("unet", self.pipe.unet), ("controlnet", self.pipe.controlnet)):
            if name in self.modes:
                part = module.state_dict()
            elif f"{name}_lora" in self.modes:
                part = get_peft_model_state_dict(module)
            else:
                continue
            state |= {f"{name}.{key}": tensor for key, tensor in part.items()}
        return state

    @torch.no_grad()
    def load_adapter_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy tensors saved from adapter_state_dict() into a bundle made trainable in the same way."""
        own = self.adapter_state_dict()
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in state.items()}:
            raise UserError(
                "the trained weights do not fit: set model.train, model.lora.rank and"
                " model.lora.target_modules as in the run that wrote them"
            )
        for name, tensor in state.items():
            own[name].copy_(tensor)


def load_bundle(
    path_or_id: str | Path, dtype: torch.dtype = torch.float32, controlnet: str | Path | None = None
) -> Bundle:
    """Load "rf-tiny", a diffusers pipeline folder or a hub id; controlnet: folder or id, if that has none."""
    for library in (diffusers_logging, transformers_logging):  # bars for the parts of one small pipeline
        library.disable_progress_bar()
    # What it logs there, it raises as well.
    diffusers_logging.get_logger("diffusers.models.modeling_utils").setLevel(diffusers_logging.CRITICAL)
    name, source = str(path_or_id), source_of(path_or_id)
    options: dict[str, object] = {"torch_dtype": dtype, "use_safetensors": True}
    try:
        kind = pipeline_class(source, controlnet)
        if kind is StableDiffusionControlNetInpaintPipeline:
            options |= {"safety_checker": None, "requires_safety_checker": False}
        if controlnet is not None:
            options["controlnet"] = _load_part("model.controlnet", ControlNetModel, str(controlnet), dtype)
        pipe = kind.from_pretrained(source, **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise cannot_load(name, error) from error
    return Bundle(pipe)


def load_tiny_vae(path_or_id: str, dtype: torch.dtype = torch.float32) -> AutoencoderTiny:
    """A folder or hub id that diffusers' AutoencoderTiny loads."""
    return _load_part("model.tiny_vae", AutoencoderTiny, path_or_id, dtype)


def _load_part(setting: str, kind: Any, path_or_id: str, dtype: torch.dtype) -> Any:
    try:
        return kind.from_pretrained(path_or_id, torch_dtype=dtype, use_safetensors=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise cannot_load_part(setting, path_or_id, error) from error


def _ddim(scheduler: object) -> DDIMScheduler:
    """A deterministic DDIM scheduler on the noise schedule of the given one."""
    ddim = DDIMScheduler.from_config(scheduler.config, clip_sample=False, thresholding=False)  # type: ignore[attr-defined]
    if ddim.config.prediction_type not in ("epsilon", "v_prediction") or ddim.config.rescale_betas_zero_snr:
        raise UserError("the bundle's scheduler must predict epsilon or v, without rescale_betas_zero_snr")
    return ddim
