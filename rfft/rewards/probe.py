"""The probe reads off a picture what its prompt asked for: how often it does is the prompt alignment."""

from dataclasses import dataclass, field
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from rfft.models.layers import fuse_early, vgg_stage
from rfft.models.pretrained import PretrainedModule


@dataclass
class ProbeConfig:
    """The shape of a probe; the values of its config.json."""

    # Class names of every attribute (surface, place, prop, light); "none" is a prop too.
    classes: dict[str, list[str]]
    image_size: int = 64
    widths: list[int] = field(default_factory=lambda: [32, 64, 128, 192])
    dropout: float = 0.2


class Probe(PretrainedModule):
    """Names surface, place, prop and light of a picture; it sees the product, lest it take it for a prop."""

    config_class = ProbeConfig

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__(config)
        widths = config.widths
        self.stages = nn.ModuleList(vgg_stage(a, b) for a, b in pairwise([7, *widths]))
        # A 4x4 grid keeps where things are: surfaces lie below, places above, props beside the product.
        self.trunk = nn.Sequential(
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Dropout(config.dropout),
            nn.Linear(16 * widths[-1], 256),
            nn.ReLU(),
        )
        self.heads = nn.ModuleDict(
            {name: nn.Linear(256, len(labels)) for name, labels in config.classes.items()}
        )

    def forward(self, image: Tensor, product: Tensor) -> dict[str, Tensor]:
        """Return each attribute's logits [B,K] for images [B,3,H,W] and RGBA products [B,4,H,W] in [0,1]."""
        x = fuse_early(image, product, self.config.image_size).to(self.dtype)
        for i, stage in enumerate(self.stages):
            x = stage(x if i == 0 else F.max_pool2d(x, 2))
        x = self.trunk(x)
        return {name: head(x) for name, head in self.heads.items()}
