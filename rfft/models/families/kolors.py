"""Kolors: SDXL's U-Net with the text features of ChatGLM3, Chinese and English; its ControlNet (canny).

Shapes: B batch, L tokens, D features of the text encoder, P of the pooled text.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import KolorsPipeline
from diffusers.pipelines.kolors import ChatGLMModel
from torch import Tensor

from rfft.models.families.pipeline import cut_off
from rfft.models.families.sdxl import StableDiffusionXL, time_ids
from rfft.types import Conditioning, Size

TOKENS = 256  # that the pipeline has ChatGLM3 read


class Kolors(StableDiffusionXL):
    """A base that KolorsPipeline loads; diffusers has no pipeline of its own for Kolors' ControlNet."""

    pipeline = KolorsPipeline
    required = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    text_encoders = {"text_encoder": ChatGLMModel}

    def __init__(self, pipe: Any, controlnet: Any = None) -> None:
        super().__init__(pipe, controlnet)
        if self.controlnet.encoder_hid_proj is not None:
            self.controlnet.register_forward_pre_hook(project_text, with_kwargs=True)

    @classmethod
    def recognizes(cls, pipeline: str) -> bool:
        return pipeline.startswith("Kolors")

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str], size: Size) -> tuple[Conditioning, list[str]]:
        """Return the features that the pipeline's own encode_prompt gives."""
        hidden, _, pooled, _ = self.pipe.encode_prompt(
            prompts,
            device=self.pipe.text_encoder.device,
            do_classifier_free_guidance=False,
            max_sequence_length=TOKENS,
        )
        # Its special tokens are in front, none at the end.
        cut = cut_off(self.pipe.tokenizer, prompts, TOKENS, ends=0)
        return Conditioning(hidden, {"text_embeds": pooled, "time_ids": time_ids(size, hidden)}), cut

    def blank_conditioning(self, count: int) -> Conditioning:
        blank = super().blank_conditioning(count)
        return Conditioning(torch.zeros(count, TOKENS, self.pipe.unet.config.encoder_hid_dim), blank.added)

    def kohya_name(self, module: str) -> str:
        """Return the name as it is: ComfyUI and diffusers read a U-Net's own names."""
        return module


def project_text(controlnet: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Project the text features before a forward of the ControlNet, as its U-Net does with its own.

    diffusers' ControlNetModel has the projection's weights (encoder_hid_proj) and never applies them.
    """
    text: Tensor = named["encoder_hidden_states"]
    return positional, named | {"encoder_hidden_states": controlnet.encoder_hid_proj(text)}
