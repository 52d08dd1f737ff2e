"""Pipelines of the shape of SD 1.5, SD 2.1 and SDXL with random weights: real but for the values.

`full` has the widths of the originals, with fewer layers so that memory lasts; otherwise all is tiny.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from rfft.models.bundle import Bundle
from rfft.models.families.sd import StableDiffusion
from rfft.models.families.sdxl import StableDiffusionXL

TIME_IDS = 6  # of SDXL's micro-conditioning


@dataclass(frozen=True)
class Shape:
    """What the originals differ in; `heads` is what diffusers calls attention_head_dim."""

    widths: tuple[int, ...]
    crosses: tuple[bool, ...]  # does the block attend to the text?
    heads: int | tuple[int, ...]
    text_widths: tuple[int, ...]  # of the text encoders: two make it an SDXL
    prediction_type: str = "epsilon"
    time_width: int = 256
    linear: bool = True
    groups: int = 32
    edge_widths: tuple[int, ...] = (16, 32, 96, 256)
    vae_widths: tuple[int, ...] = (128, 256, 512, 512)


FULL = {
    "sd15": Shape((320, 640, 1280, 1280), (True, True, True, False), 8, (768,), linear=False),
    "sd21": Shape(
        (320, 640, 1280, 1280), (True, True, True, False), (5, 10, 20, 20), (1024,), "v_prediction"
    ),
    "sdxl": Shape((320, 640, 1280), (False, True, True), (5, 10, 20), (768, 1280)),
}
_SMALL = {"groups": 4, "edge_widths": (4, 8, 16), "vae_widths": (8, 8, 16), "time_width": 8}
SMALL = {
    "sd15": Shape((16, 32), (True, False), 2, (16,), linear=False, **_SMALL),  # type: ignore[arg-type]
    "sd21": Shape((16, 32), (True, False), (2, 4), (16,), "v_prediction", **_SMALL),  # type: ignore[arg-type]
    "sdxl": Shape((16, 32), (False, True), (2, 4), (16, 32), **_SMALL),  # type: ignore[arg-type]
}


def pipeline(name: str, full: bool = False) -> Any:
    """A pipeline shaped like sd15, sd21 or sdxl; the same weights every time."""
    shape = (FULL if full else SMALL)[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _assemble(shape, len(shape.text_widths) == 2)


def _assemble(shape: Shape, xl: bool) -> Any:
    unet = _unet(shape, xl)
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=shape.edge_widths)
    awake(controlnet)
    words = tokenizer()
    parts = {
        "vae": vae(shape),
        "unet": unet,
        "controlnet": controlnet,
        "tokenizer": words,
        "text_encoder": text_encoder(shape.text_widths[0], words, CLIPTextModel),
        "scheduler": DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=shape.prediction_type,
        ),
        "feature_extractor": None,
    }
    if not xl:
        return StableDiffusionControlNetInpaintPipeline(
            **parts, safety_checker=None, requires_safety_checker=False
        )
    second = text_encoder(shape.text_widths[1], words, CLIPTextModelWithProjection)
    return StableDiffusionXLControlNetInpaintPipeline(
        **parts, tokenizer_2=words, text_encoder_2=second, add_watermarker=False
    )


def _unet(shape: Shape, xl: bool) -> UNet2DConditionModel:
    down = tuple("CrossAttnDownBlock2D" if crosses else "DownBlock2D" for crosses in shape.crosses)
    up = tuple("CrossAttnUpBlock2D" if crosses else "UpBlock2D" for crosses in reversed(shape.crosses))
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": shape.time_width,
        "projection_class_embeddings_input_dim": shape.text_widths[-1] + TIME_IDS * shape.time_width,
    }
    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=shape.widths,
        layers_per_block=1,
        down_block_types=down,
        up_block_types=up,
        cross_attention_dim=sum(shape.text_widths),
        attention_head_dim=shape.heads,
        norm_num_groups=shape.groups,
        use_linear_projection=shape.linear,
        **(added if xl else {}),
    )


def vae(shape: Shape, channels: int = 4) -> AutoencoderKL:
    """The autoencoder of such a base."""
    levels = len(shape.vae_widths)
    return AutoencoderKL(
        block_out_channels=shape.vae_widths,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=shape.groups,
        sample_size=64,
    )


def text_encoder(width: int, words: CLIPTokenizer, kind: Any) -> Any:
    """One of CLIP's text encoders."""
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        projection_dim=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=words.model_max_length,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    return kind(config)


def tokenizer() -> CLIPTokenizer:
    """Letters and a few merges; 24 tokens at most."""
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789,.")
    merges = [("p", "a"), ("r", "k</w>"), ("pa", "rk</w>"), ("i", "n</w>")]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=24)


def awake(controlnet: Any) -> None:
    """Let a new ControlNet have a say: give its zero convolutions weights."""
    for parameter in controlnet.parameters():
        if not parameter.any():
            parameter.data = 0.1 * torch.randn_like(parameter)


def bundle_of(pipe: Any) -> Bundle:
    """A bundle around a pipeline that is there already."""
    is_xl = isinstance(pipe, StableDiffusionXLControlNetInpaintPipeline)
    return Bundle((StableDiffusionXL if is_xl else StableDiffusion)(pipe))
