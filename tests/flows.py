"""Pipelines of the shapes of the flow bases with random weights: real but for the values, and tiny."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusion3ControlNetPipeline,
)
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5TokenizerFast

from tests.shapes import awake, text_encoder, tokenizer

CHANNELS = 16  # of latents, which are four times smaller than pictures


def pipeline(name: str) -> Any:
    """A pipeline shaped like sd3, sd35_large or sd3_inpaint; the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = PIPELINES[name]()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return pipe


def _sd3(**controlnet: Any) -> Any:
    """SD 3.5 medium's dual attention and norms, and InstantX's canny ControlNet unless said otherwise."""
    shared = {
        "sample_size": 16,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 32,
        "pos_embed_max_size": 24,
        "qk_norm": "rms_norm",
    }
    transformer = SD3Transformer2DModel(**shared, num_layers=3, dual_attention_layers=(0,))
    control = SD3ControlNetModel(**(shared | {"num_layers": 2} | controlnet))
    awake(control)
    words = tokenizer()
    return StableDiffusion3ControlNetPipeline(
        transformer=transformer,
        controlnet=control,
        vae=_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=text_encoder(16, words, CLIPTextModelWithProjection),
        text_encoder_2=text_encoder(16, words, CLIPTextModelWithProjection),
        text_encoder_3=_t5(32),
        tokenizer=words,
        tokenizer_2=words,
        tokenizer_3=_t5_tokenizer(),
    )


def _vae() -> AutoencoderKL:
    widths = (8, 8, 16)
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _t5(width: int) -> T5EncoderModel:
    sizes = {"d_model": width, "d_kv": 8, "num_heads": 2, "d_ff": 32, "num_layers": 1}
    return T5EncoderModel(T5Config(vocab_size=len(_t5_tokenizer()), **sizes))


def _t5_tokenizer() -> T5TokenizerFast:
    """Letters and a word."""
    special = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
    letters = [(letter, -3.0) for letter in "▁abcdefghijklmnopqrstuvwxyz0123456789,."]
    return T5TokenizerFast(vocab=[*special, *letters, ("▁park", -4.0)], extra_ids=0)


PIPELINES: dict[str, Callable[[], Any]] = {
    "sd3": _sd3,
    # Of Stability's own ControlNets: single blocks without text, on the base's patch embedding.
    "sd35_large": lambda: _sd3(
        joint_attention_dim=None, use_pos_embed=False, force_zeros_for_pooled_projection=False
    ),
    "sd3_inpaint": lambda: _sd3(extra_conditioning_channels=1),
}
