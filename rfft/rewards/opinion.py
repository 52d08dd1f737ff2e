"""Networks that learn from people what they like: which of two pictures is better, and a score from 1 to 5.

B batch, L text tokens, D width of the joint space, N defects. A picture is given as prepare() made it,
[B,3,S,S], or as the picture encoder's features [B,width], which are worth keeping where that is frozen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfft.models.pretrained import PretrainedModule
from rfft.rewards.encoders import Texts, make_pictures

CLIP_SCALE, NEW_SCALE, LARGEST_SCALE = 100.0, 1 / 0.07, 100.0  # of the cosine
SCORES = 5  # 1 to 5
READ_BY = (
    0.3  # as near to a condition, against the nearest one, must a prompt's word be to be read (MPS's code)
)


@dataclass
class PreferenceConfig:
    """The shape of a preference network; the values of its config.json."""

    pictures: dict[str, Any]  # shapes of the encoders: rewards/encoders.py
    texts: dict[str, Any]
    dimensions: dict[str, str]  # what is preferred, by name, and the words that stand for it
    width: int = 256  # of the joint space; CLIP has its own
    heads: int = 4
    layers: int = 1  # of cross-attention, where there are several dimensions
    dropout: float = 0.0
    tie: float = 0.0  # probabilities closer than this are a tie; chosen on validation data


class Encoded(PretrainedModule):
    """What both networks have in common: a picture encoder whose features may be given in its stead."""

    pictures: nn.Module

    def prepare(self, image: Tensor) -> Tensor:
        """Bring pictures [B,3,H,W] in [0,1] to the encoder's size; differentiable."""
        return self.pictures.prepare(image)  # type: ignore[operator]

    def seen(self, picture: Tensor) -> Tensor:
        """Return pictures' features [B,width]; those that are given stay as they are."""
        return self.pictures(picture) if picture.ndim == 4 else picture


class PreferenceNetwork(Encoded):
    """How well people like a picture for a prompt: the scaled cosine of PickScore (arXiv 2305.01569).

    With several dimensions the picture first attends to those words of the prompt that a dimension's
    condition speaks of, as in MPS (arXiv 2405.14705), and to the condition itself, which MPS leaves out: a
    prompt may say nothing of quality.
    """

    config_class = PreferenceConfig

    def __init__(self, config: PreferenceConfig) -> None:
        super().__init__(config)
        self.pictures = make_pictures(config.pictures)
        is_clip = bool(config.pictures)
        self.texts = Texts(config.texts, projects=is_clip)
        width = self.texts.width if is_clip else config.width
        self.picture_head = nn.Identity() if is_clip else mlp(self.pictures.width, width, config.dropout)
        self.text_head = nn.Identity() if is_clip else nn.Linear(self.texts.width, width)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(CLIP_SCALE if is_clip else NEW_SCALE)))
        layers = config.layers if len(config.dimensions) > 1 else 0
        self.cross = nn.ModuleList(CrossAttention(width, config.heads, config.dropout) for _ in range(layers))

    def forward(self, picture: Tensor, prompt: tuple[Tensor, Tensor], words: tuple[Tensor, Tensor]) -> Tensor:
        """Return scores [B] of pictures; ids and mask [B,L] of prompts, and of dimensions' words."""
        seen = self.picture_head(self.seen(picture))[:, None]
        read = self.text_head(self.texts(*prompt))
        if len(self.cross):
            condition = self.text_head(self.texts(*words))[:, 1:]
            hidden = ~relevant(read[:, 1:], condition, prompt[1].bool(), words[1].bool())
            keys = torch.cat([read[:, 1:], condition], dim=1)
            hidden = torch.cat([hidden, ~words[1].bool()], dim=1)
            for layer in self.cross:
                seen = layer(seen, keys, hidden)
        cosine = F.cosine_similarity(seen[:, 0].float(), read[:, 0].float(), dim=-1)
        return self.logit_scale.exp().clamp(max=LARGEST_SCALE) * cosine


def relevant(prompt: Tensor, condition: Tensor, is_word: Tensor, is_condition: Tensor) -> Tensor:
    """Return which words [B,L] of prompts a condition speaks of (MPS, arXiv 2405.14705, section 4).

    prompt [B,L,D] and condition [B,C,D] are encoded words, is_word [B,L] and is_condition [B,C] their masks.
    A word is read if its cosine with the condition's nearest word is at least 0.3 of the best word's.
    """
    nearness = F.normalize(prompt, dim=-1) @ F.normalize(condition, dim=-1).transpose(1, 2)
    nearness = nearness.masked_fill(~is_condition[:, None], -1).amax(-1).masked_fill(~is_word, -1)
    return is_word & (nearness >= READ_BY * nearness.amax(-1, keepdim=True))


class CrossAttention(nn.Module):
    """A picture attends to words: a decoder's layer without self-attention.

    MPS sends all tokens of a picture through it and reads off the first, which the others do not change.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.feed_forward = mlp(width, width, dropout)

    def forward(self, x: Tensor, keys: Tensor, hidden: Tensor) -> Tensor:
        """Return pictures [B,1,D], which attend to keys [B,K,D] that are not hidden [B,K]."""
        x = x + self.attend(self.norms[0](x), keys, keys, key_padding_mask=hidden, need_weights=False)[0]
        return x + self.feed_forward(self.norms[1](x))


@dataclass
class AestheticConfig:
    """The shape of an aesthetic network; the values of its config.json."""

    pictures: dict[str, Any]  # shape of the encoder: rewards/encoders.py
    defects: list[str] = field(default_factory=list)
    width: int = 256
    dropout: float = 0.0


class AestheticNetwork(Encoded):
    """What score people give a picture, from 1 to 5, and which defects they name: two heads on one trunk."""

    config_class = AestheticConfig

    def __init__(self, config: AestheticConfig) -> None:
        super().__init__(config)
        self.pictures = make_pictures(config.pictures)
        self.trunk = nn.Sequential(mlp(self.pictures.width, config.width, config.dropout), nn.GELU())
        self.score_head = nn.Linear(config.width, SCORES)
        self.defect_head = nn.Linear(config.width, len(config.defects))

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of the five scores [B,5] and of the defects [B,N]."""
        x = self.trunk(self.seen(picture))
        return self.score_head(x).float(), self.defect_head(x).float()


def expected_score(logits: Tensor) -> Tensor:
    """Return the expected score [B], from 1 to 5, of the logits [B,5] of each."""
    return logits.softmax(-1) @ torch.arange(1.0, SCORES + 1, device=logits.device)


def mlp(width: int, out: int, dropout: float) -> nn.Sequential:
    """Return a network of one hidden layer."""
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, out), nn.GELU(), nn.Dropout(dropout), nn.Linear(out, out)
    )
