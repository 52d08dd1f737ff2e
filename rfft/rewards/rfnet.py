"""RFNet, the reliable feedback network (arXiv 2408.00418): judges an image as a human inspector would.

B batch, H W pixels, T tokens of one picture (grid x grid), L caption tokens, D width.
Modalities: o the product I_o, g the generated image I_g, d its depth I_d, s its saliency I_s, c the caption.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, ResNetConfig, ResNetModel

from rfft.errors import UserError
from rfft.models.hub import pushing
from rfft.models.layers import composite_on_grey, normalize, resize
from rfft.models.pretrained import PretrainedModule, why
from rfft.rewards.rfnet_card import copy_companions, render_card, require_tokenizer
from rfft.rewards.rfnet_config import CAPTION, CHANNELS, RFNetConfig


class PictureEncoder(nn.Module):
    """A ResNet whose last feature map is projected to tokens: [B,C,H,W] in [0,1] -> [B,T,D]."""

    def __init__(self, config: RFNetConfig, channels: int) -> None:
        super().__init__()
        self.size = config.image_size
        self.resnet = ResNetModel(ResNetConfig(num_channels=channels, **config.image_encoder))
        self.project = nn.Linear(config.image_encoder["hidden_sizes"][-1], config.width)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, picture: Tensor) -> Tensor:
        features = self.resnet(normalize(resize(picture, self.size))).last_hidden_state
        return self.norm(self.project(features.flatten(2).transpose(1, 2)))


class FeatureFusionModule(nn.Module):
    """Eq (3): e_f = Conv(Conv(CrossAttn(e_o, e_c)) * Conv(e_o)) + e_o; the caption gates the product.

    The convolutions are kernel x kernel with padding. The paper's are 1x1, which gate each token by itself;
    with 3x3 a token hears its neighbours on the grid, too.
    """

    def __init__(self, width: int, heads: int, dropout: float, kernel: int) -> None:
        super().__init__()
        self.cross_attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.conv_attended = nn.Conv2d(width, width, kernel, padding=kernel // 2)
        self.conv_product = nn.Conv2d(width, width, kernel, padding=kernel // 2)
        self.conv_out = nn.Conv2d(width, width, kernel, padding=kernel // 2)

    def forward(self, e_o: Tensor, e_c: Tensor, padding: Tensor) -> Tensor:
        """Return e_f [B,T,D] of e_o [B,T,D], e_c [B,L,D], and padding [B,L], true where there is no token."""
        attended, _ = self.cross_attention(e_o, e_c, e_c, key_padding_mask=padding, need_weights=False)
        gated = self.conv_attended(to_map(attended)) * self.conv_product(to_map(e_o))
        return self.conv_out(gated).flatten(2).transpose(1, 2) + e_o


def to_map(tokens: Tensor) -> Tensor:
    """Lay tokens [B,T,D] out on their square grid: [B,D,grid,grid]."""
    grid = round(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).unflatten(2, (grid, grid))


class RFNet(PretrainedModule, ModelHubMixin):  # type: ignore[misc]  # whose from_pretrained is not used
    """Five-way verdict on a generated image; a dropped modality's encoder and tokens do not exist at all.

    `from_pretrained` takes a folder, an embedded name or a hub id; `save_pretrained(folder)` writes
    config.json, model.safetensors and a model card, and brings along tokenizer and report of the folder that
    the network was loaded from; `push_to_hub(repo_id)` uploads just that (huggingface_hub's ModelHubMixin).
    """

    config_class = RFNetConfig
    save_pretrained = ModelHubMixin.save_pretrained  # type: ignore[assignment]  # it calls _save_pretrained

    def __init__(self, config: RFNetConfig) -> None:
        super().__init__(config)
        width, grid = config.width, config.image_size // config.stride
        self.encoders = nn.ModuleDict({m: PictureEncoder(config, CHANNELS[m]) for m in config.pictures})
        self.modality = nn.ParameterDict(
            {m: nn.Parameter(0.02 * torch.randn(width)) for m in (*CHANNELS, CAPTION) if m not in config.drop}
        )
        self.position = nn.Parameter(0.02 * torch.randn(grid * grid, width))
        self.fusion_modules = nn.ModuleList()
        if CAPTION not in config.drop:
            text_config = AutoConfig.for_model(**config.text_encoder)
            self.text_encoder = AutoModel.from_config(text_config, add_pooling_layer=False)
            self.text_project = nn.Sequential(nn.Linear(text_config.hidden_size, width), nn.LayerNorm(width))
            if "o" not in config.drop:
                shape = width, config.heads, config.dropout, config.ffm_kernel
                self.fusion_modules.extend(FeatureFusionModule(*shape) for _ in range(config.n1))
        layer = nn.TransformerEncoderLayer(
            width, config.heads, 4 * width, config.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.self_attention = nn.TransformerEncoder(layer, config.n2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.num_labels))

    def forward(
        self,
        image: Tensor,
        product: Tensor,
        depth: Tensor,
        saliency: Tensor,
        caption_ids: Tensor,
        caption_mask: Tensor,
    ) -> Tensor:
        """Return logits [B,5] (or [B,2]) of pictures in [0,1], differentiable with respect to them.

        They are: image [B,3,H,W], RGBA product [B,4,H,W], depth and saliency [B,1,H,W]. Captions are ids and
        mask [B,L].
        """
        return self.head(self.fuse(*self.encode(image, product, depth, saliency, caption_ids, caption_mask)))

    def encode(
        self,
        image: Tensor,
        product: Tensor,
        depth: Tensor,
        saliency: Tensor,
        caption_ids: Tensor,
        caption_mask: Tensor,
    ) -> tuple[dict[str, Tensor], list[Tensor], Tensor]:
        """Apply eq (3): return tokens [B,T,D] of each picture, e_f for the product, and what else fuse takes.

        Arguments as in forward. Told where the product is, an encoder tells it from a prop, and its own
        shape from what grew on it, for products that it has never seen, too.
        """
        alpha = torch.zeros_like(product[:, 3:]) if "o" in self.config.drop else product[:, 3:]
        pictures = {"o": composite_on_grey(product)[:, :3], "g": image, "d": depth, "s": saliency}
        tokens = {}
        for m, encoder in self.encoders.items():
            seen = torch.cat([pictures[m], alpha], dim=1).to(self.dtype)
            tokens[m] = encoder(seen) + self.position + self.modality[m]
        padding = torch.zeros(image.shape[0], 0, dtype=torch.bool, device=image.device)
        captions: list[Tensor] = []
        if CAPTION not in self.config.drop:
            e_c, padding = self.encode_caption(caption_ids, caption_mask)
            for module in self.fusion_modules:
                tokens["o"] = module(tokens["o"], e_c, padding)
            if "o" in self.config.drop:
                captions = [e_c]  # nothing to fuse the caption into, so it joins eq (4) as it is
        return tokens, captions, padding

    def encode_caption(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return e_c [B,L,D] of ids and mask [B,L], and padding [B,L], true where there is no token."""
        hidden = self.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return self.text_project(hidden) + self.modality[CAPTION], mask == 0

    def fuse(self, tokens: dict[str, Tensor], captions: list[Tensor], padding: Tensor) -> Tensor:
        """Apply eq (4), self-attention over all tokens; return the mean of the pictures' ones [B,D]."""
        return self.attend(tokens, captions, padding).mean(dim=1)

    def attend(self, tokens: dict[str, Tensor], captions: list[Tensor], padding: Tensor) -> Tensor:
        """Return the pictures' tokens after self-attention, side by side in the order of `tokens`."""
        pictures = torch.cat(list(tokens.values()), dim=1)
        count = pictures.shape[1]
        ignored = None
        if captions:
            ignored = torch.cat([padding.new_zeros(padding.shape[0], count), padding], dim=1)
        fused = self.self_attention(torch.cat([pictures, *captions], dim=1), src_key_padding_mask=ignored)
        return fused[:, :count]

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write what makes up the network; called by save_pretrained."""
        PretrainedModule.save_pretrained(self, save_directory)
        if self.source is not None:
            copy_companions(self.source, save_directory)

    def generate_model_card(self, name: str = ".") -> ModelCard:
        """Return the model card; `name` is the folder or hub id that its lines load."""
        return ModelCard(render_card(self.config, self.source, name))

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the network with its tokenizer, report and card to the hub; return the commit's URL.

        `options` are those of ModelHubMixin.push_to_hub: private, token, branch, create_pr, commit_message.
        Raises UserError without a tokenizer, a network or a token that may write.
        """
        require_tokenizer(self.source)
        with pushing(repo_id):
            return str(super().push_to_hub(repo_id, model_card_kwargs={"name": repo_id}, **options))

    def load_encoders(self, image: str | None = None, text: str | None = None) -> None:
        """Start from published encoders (folder or hub id), such as microsoft/resnet-50 and roberta-base."""
        if text is not None and CAPTION not in self.config.drop:
            _load(self.text_encoder, _published(AutoModel, text, add_pooling_layer=False), text)
        if image is not None:
            weights = _published(ResNetModel, image)
            for modality, encoder in self.encoders.items():
                _load(encoder.get_submodule("resnet"), adapt_stem(weights, CHANNELS[modality]), image)


def adapt_stem(weights: dict[str, Tensor], channels: int) -> dict[str, Tensor]:
    """Return a ResNet's weights with its RGB stem made to take grey or RGB, and alpha, which starts at zero.

    Grey counts as if it were repeated in three channels.
    """
    name = "embedder.embedder.convolution.weight"
    stem = weights[name]
    if channels == 2:
        stem = stem.sum(dim=1, keepdim=True)
    return weights | {name: torch.cat([stem, torch.zeros_like(stem[:, :1])], dim=1)}


def _published(model: Any, source: str, **options: Any) -> dict[str, Tensor]:
    try:
        return model.from_pretrained(source, use_safetensors=True, **options).state_dict()
    except (OSError, ValueError) as error:
        raise UserError(
            f"encoder {source}: neither a folder nor a hub id that loads ({why(error)})"
        ) from error


def _load(module: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"{source} does not fit the encoder in RFNet's config: {reason}") from error
