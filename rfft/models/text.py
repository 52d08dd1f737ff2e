"""Prompts to what the U-Net attends to: the one place where SD and SDXL differ in this.

Shapes: B prompts, L tokens, D features of all text encoders together, P features of the pooled text.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rfft.types import Conditioning


def text_encoders(pipe: Any) -> list[Any]:
    """The pipeline's text encoders: one for SD 1.x and 2.x, two for SDXL."""
    return [pipe.text_encoder, *([pipe.text_encoder_2] if is_xl(pipe) else [])]


def is_xl(pipe: Any) -> bool:
    return getattr(pipe, "text_encoder_2", None) is not None


@torch.no_grad()
def encode(pipe: Any, prompts: list[str], size: int) -> tuple[Conditioning, list[str]]:
    """Features of B prompts for pictures of size x size pixels, and what had to be cut off each ("": none).

    The numbers of the pipelines' own encode_prompt. Where an SDXL pipeline says so
    (force_zeros_for_empty_prompt), an empty prompt is all zeros, as its negative prompt is by default.
    """
    ids, cut = _tokenize(pipe.tokenizer, prompts)
    device = pipe.text_encoder.device
    if not is_xl(pipe):
        return Conditioning(pipe.text_encoder(ids.to(device))[0]), cut
    first = pipe.text_encoder(ids.to(device), output_hidden_states=True)
    second_ids, _ = _tokenize(pipe.tokenizer_2, prompts)
    second = pipe.text_encoder_2(second_ids.to(device), output_hidden_states=True)
    hidden, pooled = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second[0]
    if pipe.config.force_zeros_for_empty_prompt:
        not_empty = torch.tensor([bool(prompt) for prompt in prompts], device=device).to(hidden.dtype)
        hidden, pooled = hidden * not_empty[:, None, None], pooled * not_empty[:, None]
    added = {"text_embeds": pooled, "time_ids": _time_ids(size, len(prompts)).to(hidden)}
    return Conditioning(hidden, added), cut


def _time_ids(size: int, count: int) -> Tensor:
    """SDXL's micro-conditioning [B,6]: original size, crop's corner, target size (arXiv 2307.01952, 2.2)."""
    return torch.tensor([size, size, 0, 0, size, size]).repeat(count, 1)


def _tokenize(tokenizer: Any, prompts: list[str]) -> tuple[Tensor, list[str]]:
    """Token ids [B,L] and the text behind the last token that there is room for."""
    limit = tokenizer.model_max_length
    ids = tokenizer(
        prompts, padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
    ).input_ids
    whole = tokenizer(prompts, verbose=False).input_ids
    # The last place within the limit is the end token's, and so is the last one of the whole.
    return ids, [tokenizer.decode(tokens[limit - 1 : -1]) for tokens in whole]
