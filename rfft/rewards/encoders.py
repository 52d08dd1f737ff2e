"""Pretrained encoders of pictures and texts, under heads that learn what people like: CLIP's, or embedded.

B batch, L text tokens, D an encoder's width, S its side in pixels. A text's first token stands for the whole.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from rfft.errors import UserError
from rfft.metrics.features import SIZE, EfficientNetLite0, load_efficientnet_lite0
from rfft.models.layers import CLIP_MEAN, CLIP_STD, resize, resize_shorter_side, standardize
from rfft.models.pretrained import ASSETS, why

EMBEDDED = "embedded"  # EfficientNet-Lite0 and the text encoder of rf-tiny
TEXTS = ASSETS / "rf-tiny"  # its text_encoder/ and tokenizer/
BLOCKS, CHANNELS, GRID = 11, 112, 3  # of EfficientNet: five stages, their output, places a side
Shape = dict[str, Any]  # of an encoder of transformers: the values of its config


class EfficientNetPictures(nn.Module):
    """EfficientNet-Lite0 up to its fifth stage: 112 channels, averaged over a grid of 3 x 3 places.

    Scores that follow AdWorld's faults are read off it better than off the last layer, which has forgotten
    where things are (docs/preference.md).
    """

    def __init__(self) -> None:
        super().__init__()
        whole = EfficientNetLite0()
        self._conv_stem, self._bn0, self._blocks = whole._conv_stem, whole._bn0, whole._blocks[:BLOCKS]
        self.width = GRID * GRID * CHANNELS
        self.eval()

    def prepare(self, image: Tensor) -> Tensor:
        """Bring pictures [B,3,H,W] in [0,1] to [B,3,S,S]; differentiable."""
        return resize(image, SIZE)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return features [B,D] of prepared pictures [B,3,S,S]."""
        x = F.relu6(self._bn0(self._conv_stem((pixels * 255 - 127) / 128)))
        for block in self._blocks:
            x = block(x)
        return F.adaptive_avg_pool2d(x, GRID).flatten(1)

    def train(self, mode: bool = True) -> EfficientNetPictures:
        """Stay in eval mode: batch norm keeps what it knows, as batches here are small."""
        return super().train(False)


class ClipPictures(nn.Module):
    """CLIP's vision model, projected into the joint space."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.network = CLIPVisionModelWithProjection(CLIPVisionConfig(**shape))
        self.width, self.side = self.network.config.projection_dim, self.network.config.image_size

    def prepare(self, image: Tensor) -> Tensor:
        """Bring pictures [B,3,H,W] in [0,1] to [B,3,S,S] as CLIP's image processor does; differentiable."""
        image = resize_shorter_side(image, self.side)
        top, left = ((side - self.side) // 2 for side in image.shape[-2:])
        return image[..., top : top + self.side, left : left + self.side]

    def forward(self, pixels: Tensor) -> Tensor:
        """Return features [B,D] of prepared pictures [B,3,S,S]."""
        return self.network(standardize(pixels, CLIP_MEAN, CLIP_STD)).image_embeds


class Texts(nn.Module):
    """A CLIP text encoder, with its projection or, as rf-tiny's, without one; the summary comes first."""

    def __init__(self, shape: Shape, projects: bool) -> None:
        super().__init__()
        config = CLIPTextConfig(**shape)
        self.network = (CLIPTextModelWithProjection if projects else CLIPTextModel)(config)
        self.projects, self.width = projects, config.projection_dim if projects else config.hidden_size

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return tokens [B,1+L,D] of texts, ids and mask [B,L]."""
        found = self.network(input_ids=ids, attention_mask=mask)
        if not self.projects:
            return torch.cat([found.pooler_output[:, None], found.last_hidden_state], dim=1)
        words = self.network.text_projection(found.last_hidden_state)
        return torch.cat([found.text_embeds[:, None], words], dim=1)


def shapes(encoder: str) -> tuple[Shape, Shape]:
    """Return the shapes of an encoder's two halves, pictures and texts; raises UserError for one not there.

    `encoder`: embedded, or the folder or hub id of a CLIP model.
    """
    if encoder == EMBEDDED:
        return {}, _plain(CLIPTextConfig.from_pretrained(TEXTS / "text_encoder"))
    config = _loaded(CLIPConfig, encoder)
    joint = {"projection_dim": config.projection_dim}
    return _plain(config.vision_config) | joint, _plain(config.text_config) | joint


def make_pictures(shape: Shape) -> EfficientNetPictures | ClipPictures:
    """Return the half for pictures without weights, of the shape that shapes() returned."""
    return ClipPictures(shape) if shape else EfficientNetPictures()


def load_halves(encoder: str, pictures: nn.Module, texts: nn.Module | None) -> None:
    """Give the halves their published weights."""
    if encoder == EMBEDDED:
        known = load_efficientnet_lite0()
        own = pictures.state_dict().keys()
        pictures.load_state_dict({name: v for name, v in known.state_dict().items() if name in own})
        if texts is not None:
            text = CLIPTextModel.from_pretrained(TEXTS / "text_encoder", use_safetensors=True)
            texts.network.load_state_dict(text.state_dict())  # type: ignore[union-attr]
        return
    clip = _loaded(CLIPModel, encoder, use_safetensors=True)
    for half, prefixes in ((pictures, ("vision_model", "visual_projection")), (texts, ("text_",))):
        if half is not None:
            found = {k: v for k, v in clip.state_dict().items() if k.startswith(prefixes)}
            half.network.load_state_dict(found)  # type: ignore[union-attr]


def _loaded(kind: Any, encoder: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(encoder, **options)
    except (OSError, ValueError) as error:
        raise UserError(
            f"encoder {encoder}: neither {EMBEDDED} nor a CLIP model that loads, a folder or a hub id "
            f"({why(error)})"
        ) from error


def _plain(config: Any) -> Shape:
    """Return what differs from the defaults, and the size in any case."""
    return {
        k: v
        for k, v in config.to_diff_dict().items()
        if k not in ("architectures", "dtype", "transformers_version")
    }
