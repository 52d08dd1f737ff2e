"""RFNet, the reliable feedback network (arXiv 2408.00418): judges an image as a human inspector would.

B batch, H W pixels, T tokens of one picture (grid x grid), L caption tokens, D width.
Modalities: o the product I_o, g the generated image I_g, d its depth I_d, s its saliency I_s, c the caption.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, ResNetConfig, ResNetModel

from rfft.errors import UserError
from rfft.models.layers import composite_on_grey, normalize, resize
from rfft.models.pretrained import PretrainedModule, why

CHANNELS = {"o": 4, "g": 4, "d": 2, "s": 2}  # the last one is the product's alpha: where it stands
CAPTION = "c"


def _tiny_image_encoder() -> dict[str, Any]:
    return {"embedding_size": 32, "hidden_sizes": [32, 64, 128], "depths": [2, 2, 2], "layer_type": "basic"}


def _tiny_text_encoder() -> dict[str, Any]:
    return {
        "model_type": "bert",
        "vocab_size": 4096,
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "max_position_embeddings": 64,
        "attention_probs_dropout_prob": 0.0,
    }


@dataclass
class RFNetConfig:
    """`image_encoder`: values of transformers' ResNetConfig; `text_encoder`: of Bert- or RobertaConfig."""

    image_size: int = 128
    image_encoder: dict[str, Any] = field(default_factory=_tiny_image_encoder)
    text_encoder: dict[str, Any] = field(default_factory=_tiny_text_encoder)
    width: int = 128
    heads: int = 4
    n1: int = 1  # feature fusion modules, eq (3)
    n2: int = 3  # self-attention layers, eq (4)
    dropout: float = 0.0  # on a CPU, drawing the masks would double the time of a training step
    drop: list[str] = field(default_factory=list)  # modalities left out: the ablation
    num_labels: int = 5

    @classmethod
    def tiny(cls, vocab_size: int, **overrides: Any) -> RFNetConfig:
        """For 64 px pictures, trained from scratch on a CPU."""
        return cls(text_encoder=_tiny_text_encoder() | {"vocab_size": vocab_size}, **overrides)

    @classmethod
    def paper(cls, **overrides: Any) -> RFNetConfig:
        """ResNet-50 and RoBERTa-base at 384 px, width 384, 8 heads, N1 = 1, N2 = 3."""
        values: dict[str, Any] = {
            "image_size": 384,
            "image_encoder": {
                "embedding_size": 64,
                "hidden_sizes": [256, 512, 1024, 2048],
                "depths": [3, 4, 6, 3],
                "layer_type": "bottleneck",
            },
            "text_encoder": {
                "model_type": "roberta",
                "vocab_size": 50265,
                "max_position_embeddings": 514,
                "type_vocab_size": 1,
                "layer_norm_eps": 1e-5,
            },
            "width": 384,
            "heads": 8,
            "dropout": 0.1,
        }
        return cls(**(values | overrides))

    def __post_init__(self) -> None:
        if unknown := set(self.drop) - {*CHANNELS, CAPTION}:
            raise UserError(f"rfnet drop: unknown modality {sorted(unknown)}; choose from o, g, d, s, c")
        if not self.pictures:
            raise UserError("rfnet drop: leave at least one of o, g, d, s in")
        if self.width % self.heads:
            raise UserError(f"rfnet width {self.width} is not a multiple of its {self.heads} heads")
        if self.image_size % self.stride:
            raise UserError(f"rfnet image_size {self.image_size} is not a multiple of {self.stride}")

    @property
    def pictures(self) -> list[str]:
        return [m for m in CHANNELS if m not in self.drop]

    @property
    def stride(self) -> int:
        """Pixels per token: the stem's 4, then 2 for every stage but the first."""
        return 2 ** (len(self.image_encoder["hidden_sizes"]) + 1)


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
    """Eq (3): e_f = Conv(Conv(CrossAttn(e_o, e_c)) * Conv(e_o)) + e_o; the caption gates the product."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.cross_attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.conv_attended = nn.Conv2d(width, width, 3, padding=1)
        self.conv_product = nn.Conv2d(width, width, 3, padding=1)
        self.conv_out = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, e_o: Tensor, e_c: Tensor, padding: Tensor) -> Tensor:
        """e_o [B,T,D], e_c [B,L,D], padding [B,L] true where the caption has no token -> e_f [B,T,D]."""
        attended, _ = self.cross_attention(e_o, e_c, e_c, key_padding_mask=padding, need_weights=False)
        gated = self.conv_attended(to_map(attended)) * self.conv_product(to_map(e_o))
        return self.conv_out(gated).flatten(2).transpose(1, 2) + e_o


def to_map(tokens: Tensor) -> Tensor:
    """[B,T,D] -> [B,D,grid,grid] for square grids."""
    grid = round(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).unflatten(2, (grid, grid))


class RFNet(PretrainedModule):
    """Five-way verdict on a generated image; a dropped modality's encoder and tokens do not exist at all."""

    config_class = RFNetConfig

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
                modules = [FeatureFusionModule(width, config.heads, config.dropout) for _ in range(config.n1)]
                self.fusion_modules.extend(modules)
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
        """Image [B,3,H,W], RGBA product [B,4,H,W], depth, saliency [B,1,H,W], in [0,1] -> logits [B,5]."""
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
        """Eq (3): tokens [B,T,D] of each picture, e_f for the product, and what else fuse takes.

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
        """Ids and mask [B,L] -> e_c [B,L,D] and padding [B,L] (true where there is no token)."""
        hidden = self.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return self.text_project(hidden) + self.modality[CAPTION], mask == 0

    def fuse(self, tokens: dict[str, Tensor], captions: list[Tensor], padding: Tensor) -> Tensor:
        """Eq (4): SelfAttention^N2 over all tokens, mean of the pictures'; what the head classifies [B,D]."""
        pictures = torch.cat(list(tokens.values()), dim=1)
        count = pictures.shape[1]
        ignored = None
        if captions:
            ignored = torch.cat([padding.new_zeros(padding.shape[0], count), padding], dim=1)
        fused = self.self_attention(torch.cat([pictures, *captions], dim=1), src_key_padding_mask=ignored)
        return fused[:, :count].mean(dim=1)

    def load_encoders(self, image: str | None = None, text: str | None = None) -> None:
        """Start from published encoders (folder or hub id), such as microsoft/resnet-50 and roberta-base."""
        if text is not None and CAPTION not in self.config.drop:
            _load(self.text_encoder, _published(AutoModel, text, add_pooling_layer=False), text)
        if image is not None:
            weights = _published(ResNetModel, image)
            for modality, encoder in self.encoders.items():
                _load(encoder.get_submodule("resnet"), adapt_stem(weights, CHANNELS[modality]), image)


def adapt_stem(weights: dict[str, Tensor], channels: int) -> dict[str, Tensor]:
    """A ResNet's RGB stem for grey or RGB (grey: as if it were repeated) and alpha, which starts at zero."""
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
