"""Rewards beside RFNet: PickScore, LAION's aesthetic score, ImageReward, or anybody's own; all frozen.

B batch, H W pixels, D width of CLIP's joint space. Pictures [B,3,H,W] in [0,1].
"""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel

from rfft.errors import UserError
from rfft.models.layers import (
    CLIP_MEAN,
    CLIP_STD,
    ScoreReward,
    resize_shorter_side,
    score_head,
    standardize,
)
from rfft.models.pretrained import read_weights, tokenizer_of, why


class TextMatch(ScoreReward):
    """How well a picture fits its prompt, by a CLIP model."""

    def __init__(self, model: str) -> None:
        """`model`: folder or hub id of a CLIP model with its tokenizer."""
        super().__init__()
        self.clip = _clip(model)
        self.tokenizer = tokenizer_of(model)

    def cosine(self, image: Tensor, prompts: list[str]) -> Tensor:
        """Return the cosine [B] of pictures [B,3,H,W] and prompts in CLIP's joint space."""
        tokens = self.tokenizer(prompts, padding=True, truncation=True, return_tensors="pt").to(image.device)
        text = self.clip.text_projection(self.clip.text_model(**tokens).pooler_output)
        return (F.normalize(picture_features(self.clip, image), dim=-1) * F.normalize(text, dim=-1)).sum(-1)

    def score(self, image: Tensor, prompts: list[str]) -> Tensor:
        """Return the CLIP score (arXiv 2104.08718) [B] on the usual scale: 100 x cosine, 0 at least."""
        return 100 * self.cosine(image, prompts).clamp(min=0)


class PickScore(TextMatch):
    """PickScore (arXiv 2305.01569): CLIP tuned on people's choices; 100 x cosine of picture and prompt."""

    def __init__(self, model: str = "yuvalkirstain/PickScore_v1") -> None:
        super().__init__(model)

    def score(self, image: Tensor, prompts: list[str]) -> Tensor:
        """Return PickScore [B] of pictures [B,3,H,W] and prompts."""
        return self.clip.logit_scale.exp() * self.cosine(image, prompts)


class Aesthetic(ScoreReward):
    """LAION's improved aesthetic predictor: a small head on CLIP ViT-L/14's features, about 1 to 10."""

    def __init__(self, head: str, model: str = "openai/clip-vit-large-patch14") -> None:
        """`head`: file of its weights (safetensors, or the published .pth); `model`: folder or id of CLIP."""
        super().__init__()
        self.clip = _clip(model)
        self.layers = score_head(self.clip.config.projection_dim)
        weights = read_weights(Path(head), "an aesthetic head")
        try:
            self.layers.load_state_dict({k.removeprefix("layers."): v for k, v in weights.items()})
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise UserError(f"{head} does not fit an aesthetic head on {model}: {reason}") from error

    def score(self, image: Tensor, prompts: list[str]) -> Tensor:
        """Return the aesthetic score [B] of pictures [B,3,H,W]; prompts do not matter."""
        return self.layers(F.normalize(picture_features(self.clip, image), dim=-1))[:, 0]


def picture_features(clip: CLIPModel, image: Tensor) -> Tensor:
    """Return CLIP's projected features [B,D] of pictures [B,3,H,W], not normalised; differentiable."""
    pixels = clip_pixels(image, clip.config.vision_config.image_size)
    return clip.visual_projection(clip.vision_model(pixels).pooler_output)


def clip_pixels(image: Tensor, size: int) -> Tensor:
    """Prepare pictures [B,3,H,W] in [0,1] as transformers' CLIPImageProcessor does; differentiable.

    The shorter side is brought to `size` by a bicubic filter, the middle square cut out and standardised:
    [B,3,size,size]. Scores can be compared with published ones only so.
    """
    image = resize_shorter_side(image, size)
    top, left = ((side - size) // 2 for side in image.shape[-2:])
    return standardize(image[..., top : top + size, left : left + size], CLIP_MEAN, CLIP_STD)


def _clip(model: str) -> CLIPModel:
    try:
        return CLIPModel.from_pretrained(model, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"CLIP model {model}: neither a folder nor a hub id that loads ({why(error)})"
        ) from error
