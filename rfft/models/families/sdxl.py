"""Stable Diffusion XL: two text encoders, pooled text, micro-conditioning.

Shapes: B batch, L tokens, D features of both text encoders together, P features of the pooled text.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import StableDiffusionXLControlNetInpaintPipeline
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from rfft.models.families.pipeline import tokenize
from rfft.models.families.sd import TOKENS, StableDiffusion
from rfft.models.families.sgm_names import sgm_name
from rfft.types import Conditioning, Size, sides


class StableDiffusionXL(StableDiffusion):
    """A base that StableDiffusionXLControlNetInpaintPipeline loads."""

    pipeline = StableDiffusionXLControlNetInpaintPipeline
    required = (*StableDiffusion.required, "text_encoder_2", "tokenizer_2")
    options = {}
    text_encoders = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}

    def __init__(self, pipe: Any, controlnet: Any = None) -> None:
        super().__init__(pipe, controlnet)
        # SDXL's autoencoder overflows in fp16, as its config says (that of SD 1.5 says so and does not).
        self.fp32_vae = bool(pipe.vae.config.force_upcast)
        if self.fp32_vae:
            pipe.vae.float()

    @classmethod
    def recognizes(cls, pipeline: str) -> bool:
        return pipeline.startswith("StableDiffusionXL")

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str], size: Size) -> tuple[Conditioning, list[str]]:
        """Return the features that the pipeline's own encode_prompt gives.

        Where the pipeline says so (force_zeros_for_empty_prompt), an empty prompt is all zeros, as its
        negative prompt is by default.
        """
        pipe = self.pipe
        device = pipe.text_encoder.device
        ids, cut = tokenize(pipe.tokenizer, prompts)
        first = pipe.text_encoder(ids.to(device), output_hidden_states=True)
        second_ids, _ = tokenize(pipe.tokenizer_2, prompts)
        second = pipe.text_encoder_2(second_ids.to(device), output_hidden_states=True)
        hidden, pooled = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second[0]
        if pipe.config.force_zeros_for_empty_prompt:
            not_empty = torch.tensor([bool(prompt) for prompt in prompts], device=device).to(hidden.dtype)
            hidden, pooled = hidden * not_empty[:, None, None], pooled * not_empty[:, None]
        added = {"text_embeds": pooled, "time_ids": time_ids(size, hidden)}
        return Conditioning(hidden, added), cut

    def blank_conditioning(self, count: int) -> Conditioning:
        config = self.pipe.unet.config
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {"text_embeds": torch.zeros(count, pooled), "time_ids": torch.zeros(count, 6)}
        return Conditioning(torch.zeros(count, TOKENS, config.cross_attention_dim), added)

    def kohya_name(self, module: str) -> str:
        """Return the name in the original U-Net's layout, which sd-scripts keeps for SDXL."""
        return sgm_name(module, self.pipe.unet.config.layers_per_block)


def time_ids(size: Size, like: Tensor) -> Tensor:
    """Return SDXL's micro-conditioning [B,6] (arXiv 2307.01952, 2.2): original size, corner, target size.

    Batch size, type and device are those of `like`.
    """
    return torch.tensor([*sides(size), 0, 0, *sides(size)]).repeat(len(like), 1).to(like)
