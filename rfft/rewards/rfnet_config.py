"""The shape of an RFNet, and what its verdicts need besides.

Modalities: o the product I_o, g the generated image I_g, d its depth I_d, s its saliency I_s, c the caption.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rfft.errors import UserError

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
    """The shape of an RFNet, and what its verdicts need besides; the values of its config.json.

    `image_encoder` holds values of transformers' ResNetConfig, `text_encoder` of Bert- or RobertaConfig.
    """

    image_size: int = 128
    image_encoder: dict[str, Any] = field(default_factory=_tiny_image_encoder)
    text_encoder: dict[str, Any] = field(default_factory=_tiny_text_encoder)
    width: int = 128
    heads: int = 4
    n1: int = 1  # feature fusion modules, eq (3)
    n2: int = 3  # self-attention layers, eq (4)
    ffm_kernel: int = 1  # side of the convolutions in eq (3)
    dropout: float = 0.0  # on a CPU, drawing the masks would double the time of a training step
    drop: list[str] = field(default_factory=list)  # modalities left out: the ablation
    num_labels: int = 5
    # What it learned from, for those who ask for verdicts; None where that is not known.
    picture_size: int | None = None  # pixels, square, to which pictures are brought; None: image_size
    depth: str | None = None  # networks that made its maps: names of embedded ones, folders or hub ids
    saliency: str | None = None

    @classmethod
    def tiny(cls, vocab_size: int, **overrides: Any) -> RFNetConfig:
        """Return the config of a network for 64 px pictures, to be trained from scratch on a CPU."""
        text = _tiny_text_encoder() | {"vocab_size": vocab_size}
        return cls(text_encoder=text, **({"ffm_kernel": 3} | overrides))

    @classmethod
    def paper(cls, **overrides: Any) -> RFNetConfig:
        """Return the paper's: ResNet-50 and RoBERTa-base at 384 px, width 384, 8 heads, N1 = 1, N2 = 3."""
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
        if self.ffm_kernel < 1 or self.ffm_kernel % 2 == 0:
            raise UserError(f"rfnet ffm_kernel {self.ffm_kernel} is not odd; the paper's is 1")
        if self.image_size % self.stride:
            raise UserError(f"rfnet image_size {self.image_size} is not a multiple of {self.stride}")

    @property
    def pictures(self) -> list[str]:
        """The modalities that are pictures and not left out."""
        return [m for m in CHANNELS if m not in self.drop]

    @property
    def stride(self) -> int:
        """Pixels per token along a side: the stem's 4, then a factor 2 for every stage but the first."""
        return 2 ** (len(self.image_encoder["hidden_sizes"]) + 1)
