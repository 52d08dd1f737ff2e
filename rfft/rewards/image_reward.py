"""ImageReward (arXiv 2304.05977): BLIP tuned on people's rankings of pictures for a prompt; frozen.

B batch, L tokens, P patches + 1, D width of the text encoder, H W pixels. The published weights come in the
names of BLIP's own code (arXiv 2201.12086) and are run by transformers' classes.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from rfft.errors import UserError
from rfft.models.layers import (
    CLIP_MEAN,
    CLIP_STD,
    ScoreReward,
    resize_shorter_side,
    score_head,
    standardize,
)
from rfft.models.pretrained import read_weights

WEIGHTS = ("ImageReward.safetensors", "ImageReward.pt")  # the first one that is there
TOKENS = 35  # of a prompt, with [CLS] and [SEP]; the rest is cut off
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the head's output, from the authors' code
HEAD_WIDTH = 64  # of BERT's and ViT's attention at every size
ADDED_TOKENS = 2  # [DEC] and [ENC] have rows in the embedding, but no prompt has them

# What lies where in BLIP's code and in transformers'. The text encoder's names are the same within it.
_RENAMED = (
    (r"^mlp\.layers\.", "head."),
    (r"^blip\.text_encoder\.", "text."),
    (r"^blip\.visual_encoder\.", "vision."),
    (r"^vision\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^vision\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^vision\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^vision\.norm\.", "vision.post_layernorm."),
    (r"^vision\.blocks\.", "vision.encoder.layers."),
    (r"^(vision\..*)\.norm([12])\.", r"\1.layer_norm\2."),
    (r"^(vision\..*)\.attn\.qkv\.", r"\1.self_attn.qkv."),
    (r"^(vision\..*)\.attn\.proj\.", r"\1.self_attn.projection."),
)
# Not the projections of BLIP's contrastive loss, nor a list of numbers that is no weight.
_USED = re.compile(r"(blip\.visual_encoder|blip\.text_encoder(?!\.embeddings\.position_ids)|mlp)\.")


class ImageReward(ScoreReward):
    """Scores how well a picture fits its prompt and how good it is: about -2 to 2, 0 on average."""

    def __init__(self, weights: dict[str, Tensor], tokenizer: Any) -> None:
        """Take weights by their published names, which give all sizes, and bert-base-uncased's tokenizer.

        Raises KeyError, ValueError or RuntimeError if the weights are not ImageReward's.
        """
        super().__init__()
        weights = renamed(weights)
        vision, text = vision_config(weights), text_config(weights)
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.head = score_head(text.hidden_size)
        self.load_state_dict(weights)
        self.tokenizer = tokenizer
        self.requires_grad_(False).eval()

    def score(self, image: Tensor, prompts: list[str]) -> Tensor:
        """Return the score [B] of pictures [B,3,H,W] and prompts, differentiable in the picture."""
        tokens = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(image.device)
        seen = self.vision(pixels(image, self.vision.config.image_size)).last_hidden_state  # [B,P,width]
        read = self.text(tokens.input_ids, tokens.attention_mask, encoder_hidden_states=seen)
        return (self.head(read.last_hidden_state[:, 0])[:, 0] - MEAN) / STD


def pixels(image: Tensor, size: int) -> Tensor:
    """Prepare pictures [B,3,H,W] in [0,1] as the authors do: standardised pixels [B,3,size,size].

    That is torchvision's Resize (bicubic) and CenterCrop, whose middle is rounded; differentiable.
    """
    image = resize_shorter_side(image, size)
    top, left = (round((side - size) / 2) for side in image.shape[-2:])
    return standardize(image[..., top : top + size, left : left + size], CLIP_MEAN, CLIP_STD)


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that have a part in the score under the names of ImageReward's modules."""
    found = {}
    for name, tensor in weights.items():
        if _USED.match(name):
            for pattern, replacement in _RENAMED:
                name = re.sub(pattern, replacement, name)
            found[name] = tensor
    return found


def vision_config(weights: dict[str, Tensor]) -> BlipVisionConfig:
    """Return the config of a ViT with these weights, named as in `renamed`."""
    width, _, _, patch = weights["vision.embeddings.patch_embedding.weight"].shape
    patches = weights["vision.embeddings.position_embedding"].shape[1] - 1
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=weights["vision.encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=_count(weights, "vision.encoder.layers.*.layer_norm1.weight"),
        num_attention_heads=width // HEAD_WIDTH,
        image_size=patch * math.isqrt(patches),
        patch_size=patch,
        layer_norm_eps=1e-6,  # BLIP's own; transformers' default differs
    )


def text_config(weights: dict[str, Tensor]) -> BlipTextConfig:
    """Return the config of a BERT with these weights, named as in `renamed`."""
    words, width = weights["text.embeddings.word_embeddings.weight"].shape
    return BlipTextConfig(
        vocab_size=words,
        hidden_size=width,
        encoder_hidden_size=weights["text.encoder.layer.0.crossattention.self.key.weight"].shape[1],
        intermediate_size=weights["text.encoder.layer.0.intermediate.dense.weight"].shape[0],
        num_hidden_layers=_count(weights, "text.encoder.layer.*.output.LayerNorm.weight"),
        num_attention_heads=width // HEAD_WIDTH,
        max_position_embeddings=weights["text.embeddings.position_embeddings.weight"].shape[0],
        is_decoder=True,  # transformers' word for: with cross-attention; the mask hides padding alone
    )


def _count(weights: dict[str, Tensor], pattern: str) -> int:
    """Count the names of the given form, in which * stands for a number."""
    form = re.compile(re.escape(pattern).replace(r"\*", r"\d+"))
    return sum(form.fullmatch(name) is not None for name in weights)


def load_image_reward(folder: str) -> ImageReward:
    """Load ImageReward.pt (or .safetensors, same names) and bert-base-uncased's tokenizer from a folder.

    med_config.json may lie there too; it says nothing that the weights do not. Raises UserError for anything
    that is missing or does not fit.
    """
    file = next((Path(folder) / name for name in WEIGHTS if (Path(folder) / name).is_file()), None)
    if file is None:
        raise UserError(f"ImageReward {folder}: no folder that holds {WEIGHTS[1]} or {WEIGHTS[0]}")
    weights = read_weights(file, "ImageReward")
    tokenizer = BertTokenizer.from_pretrained(folder)
    try:
        model = ImageReward(weights, tokenizer)
    except (KeyError, ValueError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[-1].strip()}"
        raise UserError(f"{file} does not hold ImageReward's weights ({reason})") from error
    # Where there is none, transformers 5 makes up a tokenizer that knows no word.
    words, rows = len(tokenizer), model.text.config.vocab_size
    if words not in (rows - ADDED_TOKENS, rows):
        raise UserError(
            f"ImageReward {folder}: a tokenizer of {words} words for weights of {rows}; put the vocab.txt of "
            "bert-base-uncased there"
        )
    return model
