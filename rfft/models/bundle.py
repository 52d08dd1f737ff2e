"""The generator: a base of some family, what of it is trained, and how it is loaded.

Shapes: B batch, C latent channels, h w latent, H W pixels. Pictures in [0, 1].
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from peft import get_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from rfft.errors import UserError
from rfft.models import lora
from rfft.models.families import KNOWN
from rfft.models.families.base import Family
from rfft.models.pretrained import ASSETS, load_part, skeleton_part, why
from rfft.types import Batch, Conditioning, Denoise, Schedule

EMBEDDED = "rf-tiny"
MODES = ("denoiser_lora", "controlnet_lora", "controlnet")


class Bundle:
    """The generator. A trainer may replace `denoiser` by its wrapped form (DDP, compiled)."""

    def __init__(self, family: Family) -> None:
        """Freeze all networks of a loaded base."""
        self.family = family
        self.modules = family.networks()
        for module in self.modules:
            module.requires_grad_(False).eval()
        self.unwrapped = family.denoiser
        self.denoiser: Denoise = self.unwrapped
        self.frozen_controlnet: nn.Module | None = None
        self.tiny_vae: AutoencoderTiny | None = None
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
        for module in [*self.modules, self.unwrapped, self.frozen_controlnet]:
            if module is not None:
                module.to(device)
        return self

    def schedule(self, steps: int) -> Schedule:
        """Return the sampling steps that diffusers would make, on this bundle's device."""
        return self.family.schedule(steps).to(self.device)

    # ---- encoders ----

    def encode_prompts(self, prompts: list[str], size: int) -> tuple[Conditioning, list[str]]:
        """Return text features for pictures of size x size pixels, and what was cut off each prompt's end."""
        return self.family.encode_prompts(prompts, size)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return the latent [B,C,h,w] of pixels [B,3,H,W]; without noise, so always the same."""
        return self.family.encode_image(pixels)

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

    def trained_module(self, mode: str) -> Any:
        """Return the network that a mode of model.train is about."""
        part = self.family.part if mode == "denoiser_lora" else "controlnet"
        if not hasattr(self.unwrapped, part):
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
                lora.attach(self.trained_module(mode), rank, alpha, target_modules)
        if "controlnet" in modes:
            controlnet = self.trained_module("controlnet")
            self.frozen_controlnet = copy.deepcopy(controlnet)
            controlnet.float().requires_grad_(True)

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
            name = self.family.part if mode == "denoiser_lora" else "controlnet"
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


def source_of(path_or_id: str | Path) -> str:
    """Return the folder or hub id behind a bundle's name."""
    name = str(path_or_id)
    folder = ASSETS / EMBEDDED if name == EMBEDDED else Path(name)
    return str(folder) if folder.is_dir() else name


def load_bundle(
    path_or_id: str | Path,
    dtype: torch.dtype = torch.float32,
    controlnet: str | Path | None = None,
    family: type[Family] | None = None,
) -> Bundle:
    """Load "rf-tiny", a folder or a hub id.

    `controlnet`: a folder or id, where the base has none; `family`: what it is, where its
    model_index.json does not say. Raises UserError where it cannot be loaded.
    """
    for library in (diffusers_logging, transformers_logging):  # bars for the parts of one small pipeline
        library.disable_progress_bar()
    # What it logs there, it raises as well.
    diffusers_logging.get_logger("diffusers.models.modeling_utils").setLevel(diffusers_logging.CRITICAL)
    with _explained(path_or_id):
        kind = family or _recognized(path_or_id)
        return Bundle(
            kind.load(source_of(path_or_id), None if controlnet is None else str(controlnet), dtype)
        )


def load_skeleton(
    path_or_id: str,
    dtype: torch.dtype = torch.float32,
    controlnet: str | None = None,
    family: type[Family] | None = None,
    tiny_vae: str | None = None,
) -> Bundle:
    """Do as load_bundle, to count what a run costs: where the family can, config files alone are read."""
    with _explained(path_or_id):
        kind = family or _recognized(path_or_id)
        bundle = Bundle(kind.skeleton(source_of(path_or_id), controlnet, dtype))
    if tiny_vae is not None:
        with torch.device("meta"):
            bundle.set_tiny_vae(skeleton_part("model.tiny_vae", AutoencoderTiny, tiny_vae).to(dtype))
    return bundle


def load_tiny_vae(path_or_id: str, dtype: torch.dtype = torch.float32) -> AutoencoderTiny:
    """Load a folder or hub id of diffusers' AutoencoderTiny."""
    return load_part("model.tiny_vae", AutoencoderTiny, path_or_id, dtype)


def skeleton_batch(bundle: Bundle, size: int, count: int) -> Batch:
    """Return an empty batch of `count` pictures of size x size pixels."""
    h, channels = size // bundle.latent_factor, bundle.family.latent_channels
    conditioning = bundle.family.blank_conditioning(count)
    return Batch(
        z=conditioning,
        null=conditioning,
        edges=torch.zeros(count, 3, size, size),
        product=torch.zeros(count, 4, size, size),
        x_o=torch.zeros(count, channels, h, h),
        mask=torch.zeros(count, 1, h, h),
        noise=torch.zeros(count, channels, h, h),
        sample=torch.arange(count),
        captions=["bookcase, about 180 cm tall"] * count,
        prompts=["a bookcase in a park"] * count,
    )


def _recognized(path_or_id: str | Path) -> type[Family]:
    """Return the family that recognizes the base's model_index.json."""
    source = source_of(path_or_id)
    if Path(source).is_dir() and not (Path(source) / "model_index.json").is_file():
        raise UserError(
            f"bundle {path_or_id}: no model_index.json in {source}; give a diffusers pipeline folder"
        )
    index = DiffusionPipeline.load_config(source)
    pipeline = index.get("_class_name") if isinstance(index, dict) else None
    if not isinstance(pipeline, str):
        raise ValueError("its model_index.json names no pipeline: _class_name is missing")
    for kind in KNOWN.values():
        if kind.recognizes(pipeline):
            return kind
    raise ValueError(f"it is a {pipeline}, of none of the families {', '.join(KNOWN)}")


@contextmanager
def _explained(name: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        choices = f"give {EMBEDDED}, a diffusers pipeline folder or a hub id"
        raise UserError(f"bundle {name} cannot be loaded ({why(error)}); {choices}") from error
