"""A bundle from its config files alone, without memory on the meta device: to count what a run costs."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from rfft.models.pipeline import Bundle
from rfft.models.pipeline_source import cannot_load, cannot_load_part, pipeline_class, source_of
from rfft.types import Batch, Conditioning

TOKENS = 77  # of CLIP's text encoders


def load_skeleton(
    path_or_id: str,
    controlnet: str | None = None,
    tiny_vae: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Bundle:
    """As models.bundle.load_bundle, but only the config files are read; there are no weights."""
    try:
        bundle = _assemble(source_of(path_or_id), controlnet, dtype)
        if tiny_vae is not None:
            with torch.device("meta"):
                bundle.set_tiny_vae(_named("model.tiny_vae", AutoencoderTiny, tiny_vae).to(dtype))
    except (OSError, ValueError) as error:
        raise cannot_load(path_or_id, error) from error
    return bundle


def _assemble(source: str, controlnet: str | None, dtype: torch.dtype) -> Bundle:
    kind, index = pipeline_class(source, controlnet), DiffusionPipeline.load_config(source)
    parts: dict[str, Any] = {"scheduler": _from(DDIMScheduler, source, subfolder="scheduler")}
    with torch.device("meta"):
        parts |= {
            "unet": _from(UNet2DConditionModel, source, subfolder="unet"),
            "vae": _from(AutoencoderKL, source, subfolder="vae"),
            "controlnet": _named("model.controlnet", ControlNetModel, controlnet)
            if controlnet is not None
            else _from(ControlNetModel, source, subfolder="controlnet"),
            "text_encoder": _text(CLIPTextModel, source, "text_encoder"),
        }
        if "text_encoder_2" in index:
            parts["text_encoder_2"] = _text(CLIPTextModelWithProjection, source, "text_encoder_2")
    for part in parts.values():
        if isinstance(part, nn.Module):
            part.to(dtype)
    absent = [name for name, value in index.items() if isinstance(value, list) and name not in parts]
    return Bundle(kind(**parts, **dict.fromkeys([*absent, *_missing(kind, parts, absent)])))


def _missing(kind: Any, parts: dict[str, Any], absent: list[str]) -> set[str]:
    """Components that the pipeline takes and the base's own pipeline has not."""
    return set(kind._get_signature_types()) - set(parts) - set(absent)


def _from(kind: Any, source: str, **where: str) -> Any:
    return kind.from_config(kind.load_config(source, **where))


def _named(setting: str, kind: Any, name: str) -> Any:
    """A part that has a setting of its own."""
    try:
        return _from(kind, name)
    except (OSError, ValueError) as error:
        raise cannot_load_part(setting, name, error) from error


def _text(kind: Any, source: str, subfolder: str) -> Any:
    return kind(CLIPTextConfig.from_pretrained(source, subfolder=subfolder))


def skeleton_batch(bundle: Bundle, size: int, count: int, caption: int) -> Batch:
    """A batch of `count` pictures of size x size pixels and captions of so many tokens."""
    h = size // bundle.latent_factor
    conditioning = _conditioning(bundle, count)
    return Batch(
        z=conditioning,
        null=conditioning,
        edges=torch.zeros(count, 3, size, size),
        product=torch.zeros(count, 4, size, size),
        x_o=torch.zeros(count, 4, h, h),
        mask=torch.zeros(count, 1, h, h),
        caption_ids=torch.zeros(count, caption, dtype=torch.long),
        caption_mask=torch.ones(count, caption, dtype=torch.long),
        noise=torch.zeros(count, 4, h, h),
        sample=torch.arange(count),
    )


def _conditioning(bundle: Bundle, count: int) -> Conditioning:
    config = bundle.pipe.unet.config
    added = {}
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {"text_embeds": torch.zeros(count, pooled), "time_ids": torch.zeros(count, 6)}
    return Conditioning(torch.zeros(count, TOKENS, config.cross_attention_dim), added)
