"""The generator: a base of some family, and what of it is trained.

Shapes: B batch, C latent channels, h w latent, H W pixels. Pictures in [0, 1].
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderTiny
from peft import get_peft_model_state_dict
from torch import Tensor, nn

from rfft.errors import UserError, require
from rfft.models import lora
from rfft.models.families.base import Family
from rfft.models.fast import FastCopy
from rfft.models.half import use_in_full
from rfft.models.int8 import quantize
from rfft.types import Conditioning, Denoise, Schedule, Size

MODES = ("denoiser_lora", "controlnet_lora", "controlnet")


class Bundle:
    """The generator. A trainer may replace `denoiser` by its wrapped form (DDP, compiled)."""

    def __init__(self, family: Family) -> None:
        """Freeze all networks of a loaded base; a denoiser in half precision is used in full."""
        self.family = family
        self.modules = family.networks()
        self.unwrapped = family.denoiser
        for module in (*self.modules, self.unwrapped):
            module.requires_grad_(False).eval()
        if any(p.dtype in (torch.float16, torch.bfloat16) for p in self.unwrapped.parameters()):
            use_in_full(self.unwrapped)
        self.denoiser: Denoise = self.unwrapped
        self.frozen_controlnet: nn.Module | None = None
        self.tiny_vae: AutoencoderTiny | None = None
        self.fast: FastCopy | None = None  # of the denoiser, for training rollouts
        self.modes: list[str] = []

    @property
    def pipe(self) -> Any:
        """The diffusers pipeline behind the base; None for a family that has none."""
        return self.family.pipe

    @property
    def device(self) -> torch.device:
        return next(self.unwrapped.parameters()).device

    @property
    def latent_factor(self) -> int:
        """Pixels per latent element along each side."""
        return self.family.latent_factor

    def to(self, device: torch.device | str) -> Bundle:
        """Move the networks there, but for those that only read prompts: these visit it when needed."""
        texts = self.family.text_networks()
        for module in [*self.modules, self.unwrapped, self.frozen_controlnet]:
            if module is not None and module not in texts:
                module.to(device)
        return self

    def schedule(self, steps: int, size: Size | None = None) -> Schedule:
        """Return the sampling steps that diffusers would make, on this bundle's device.

        `size`: the pictures', on which some families' noise levels depend.
        """
        return self.family.schedule(steps, size).to(self.device)

    def set_embedded_guidance(self, scale: float) -> None:
        """Tell the denoiser the guidance scale, where guidance is distilled into it; others know none."""
        denoiser: Any = self.unwrapped
        if hasattr(denoiser, "guidance"):
            denoiser.guidance = scale

    # ---- encoders ----

    def encode_prompts(self, prompts: list[str], size: Size) -> tuple[Conditioning, list[str]]:
        """Return text features for pictures of this size, and what was cut off each prompt's end."""
        texts = self.family.text_networks()
        at_rest = [next(network.parameters()).device for network in texts]
        try:
            for network in texts:
                network.to(self.device)
            return self.family.encode_prompts(prompts, size)
        finally:
            for network, device in zip(texts, at_rest, strict=True):
                network.to(device)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return the latent [B,C,h,w] of pixels [B,3,H,W]; without noise, so always the same."""
        return self.family.encode_image(pixels)

    def encode_control(self, edges: Tensor, product: Tensor) -> Tensor:
        """Return what the ControlNet takes, made of edges [B,3,H,W] and the product [B,4,H,W]."""
        return self.family.encode_control(edges, product)

    def decode(self, latent: Tensor) -> Tensor:
        """Return pixels [B,3,H,W], not clamped, of latent [B,C,h,w]."""
        return self.family.decode(latent)

    def preview(self, latent: Tensor) -> Tensor:
        """Decode for the training step: by the small decoder, if there is one."""
        if self.tiny_vae is None:
            return self.decode(latent)
        latent = latent / self.tiny_vae.config.scaling_factor
        pixels = self.tiny_vae.decode(latent.to(self.tiny_vae.dtype), return_dict=False)[0]
        return pixels.to(latent.dtype) / 2 + 0.5

    def set_tiny_vae(self, tiny: AutoencoderTiny) -> None:
        """Decode in the training step with a small distilled decoder (TAESD, say), frozen."""
        config = tiny.config
        factor = config.upsampling_scaling_factor ** (len(config.num_decoder_blocks) - 1)
        own = self.latent_factor, self.family.latent_channels
        if (factor, config.latent_channels) != own:
            raise UserError(
                f"model.tiny_vae enlarges {config.latent_channels} channels {factor} times, the bundle's own "
                f"decoder {own[1]} channels {own[0]} times: name one that was distilled from it"
            )
        self.tiny_vae = tiny.requires_grad_(False).eval()
        self.modules.append(self.tiny_vae)

    # ---- training ----

    def quantize(self, kind: str, modes: Sequence[str], target_modules: Sequence[str]) -> None:
        """Keep frozen linear layers in int8, where `kind` says so: to be called before train().

        Those that train() with these arguments gives a LoRA, or trains, stay as they are: what is merged in a
        rollout is not rounded again and again.
        """
        if kind == "none":
            return
        blocks, part = self.family.units, self.family.part
        require(blocks, "model.quantize: this base's family names no blocks (units): set it to none")
        for name, network in self.unwrapped.named_children():
            mode = f"{'denoiser' if name == part else name}_lora"
            if name != "controlnet" or "controlnet" not in modes:
                quantize(network, blocks, target_modules if mode in modes else ())

    def part_of(self, mode: str) -> str:
        """Return what the network is called that a mode of model.train is about."""
        return self.family.part if mode == "denoiser_lora" else "controlnet"

    def trained_module(self, mode: str) -> Any:
        """Return the network that a mode of model.train is about."""
        part = self.part_of(mode)
        if getattr(self.unwrapped, part, None) is None:
            raise UserError(f"model.train {mode}: this base has no {part}")
        return getattr(self.unwrapped, part)

    def train(self, modes: list[str], rank: int, alpha: float, target_modules: list[str]) -> None:
        """Make trainable, in fp32: LoRA adapters on denoiser or ControlNet, or the whole ControlNet."""
        if not modes or set(modes) - set(MODES):
            raise UserError(f"model.train {modes}: give one or more of {', '.join(MODES)}")
        if {"controlnet", "controlnet_lora"} <= set(modes):
            raise UserError("model.train: controlnet trains all of the ControlNet; leave out controlnet_lora")
        self.modes = list(modes)
        for mode in MODES[:2]:
            if mode in modes:
                idle = self.family.idle(self.part_of(mode))
                lora.attach(self.trained_module(mode), rank, alpha, target_modules, idle)
        if "controlnet" in modes:
            controlnet = self.trained_module("controlnet")
            self.frozen_controlnet = copy.deepcopy(controlnet)
            controlnet.float().requires_grad_(True)
            for name in self.family.idle("controlnet"):
                controlnet.get_submodule(name).requires_grad_(False)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass: denoiser, ControlNet and decoder."""
        self.family.enable_gradient_checkpointing()
        if self.tiny_vae is not None:
            self.tiny_vae.enable_gradient_checkpointing()

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Become the model before training: adapters off, the ControlNet's frozen copy in its place."""
        trained: Any = getattr(self.unwrapped, "controlnet", None)
        if self.frozen_controlnet is not None:
            self.unwrapped.controlnet = self.frozen_controlnet
        try:
            with lora.adapters_off(self.unwrapped):
                yield
        finally:
            if self.frozen_controlnet is not None:
                self.unwrapped.controlnet = trained

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Merge the adapters into the weights, for forwards without gradient."""
        with lora.merged(self.unwrapped):
            yield

    @contextmanager
    def rolling(self) -> Iterator[Denoise]:
        """Have a denoiser for a training rollout, without gradient: the fast copy, if there is one."""
        if self.fast is None:
            with self.merged():
                yield self.denoiser
        else:
            self.fast.begin()
            yield self.fast

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name."""
        return {name: p for name, p in self.unwrapped.named_parameters() if p.requires_grad}

    def adapter_state_dict(self) -> dict[str, Tensor]:
        """Return the trained tensors themselves, not copies, under `controlnet.` or the part (`unet.`).

        LoRA tensors carry peft's names (...lora_A.weight), those that diffusers' load_lora_weights reads.
        """
        state: dict[str, Tensor] = {}
        for mode in self.modes:
            module = self.trained_module(mode)
            part = module.state_dict() if mode == "controlnet" else get_peft_model_state_dict(module)
            state |= {f"{self.part_of(mode)}.{key}": tensor for key, tensor in part.items()}
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
