"""The networks that give RFNet its depth and saliency maps: one small U-Net (arXiv 1505.04597) for both."""

from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfft.models.layers import normalize, vgg_stage
from rfft.models.pretrained import PretrainedModule


@dataclass
class MapNetConfig:
    # Channels of each level; every level has half the size of the one above.
    widths: list[int] = field(default_factory=lambda: [16, 32, 64, 96, 128])


class MapNet(PretrainedModule):
    """Image [B,3,H,W] in [0,1] -> map [B,1,H,W] in [0,1]; any H, W of at least 2^(levels - 1)."""

    config_class = MapNetConfig

    def __init__(self, config: MapNetConfig) -> None:
        super().__init__(config)
        widths = config.widths
        self.down = nn.ModuleList(vgg_stage(a, b) for a, b in pairwise([3, *widths]))
        self.up = nn.ModuleList(vgg_stage(below + skip, skip) for below, skip in pairwise(widths[::-1]))
        self.out = nn.Conv2d(widths[0], 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(image))

    def logits(self, image: Tensor) -> Tensor:
        """The map before its sigmoid, [B,1,H,W]."""
        x = normalize(image.to(self.dtype))
        skips: list[Tensor] = []
        for i, stage in enumerate(self.down):
            x = stage(x if i == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        for stage, skip in zip(self.up, skips[-2::-1], strict=True):
            x = F.interpolate(x, skip.shape[-2:], mode="bilinear", align_corners=False)
            x = stage(torch.cat([x, skip], dim=1))
        return self.out(x)
