"""U2-Net, a salient object detector (arXiv 2005.09007), in its small form u2netp.

B batch, H W pixels. Batch norm is folded into the convolutions, so the network is for inference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfft.models.layers import IMAGENET_MEAN, IMAGENET_STD, resize, standardize
from rfft.models.pretrained import PretrainedModule

ENCODER = (7, 6, 5, 4, 0, 0)  # heights L of the residual U-blocks En_1 to En_6; 0: RSU-4F
DECODER = (0, 4, 5, 6, 7)  # De_5 to De_1


@dataclass
class U2NetConfig:
    """The shape of a U2-Net, by default the paper's small one; the values of its config.json."""

    image_size: int = 320  # pictures are resized to this
    width: int = 64  # channels between blocks
    mid: int = 16  # channels within a block


class U2Net(PretrainedModule):
    """Makes saliency [B,1,H,W] in [0,1] of images [B,3,H,W] in [0,1]; differentiable in the image."""

    config_class = U2NetConfig

    def __init__(self, config: U2NetConfig) -> None:
        super().__init__(config)
        width, mid = config.width, config.mid
        self.encoder = nn.ModuleList(
            RSU(3 if i == 0 else width, mid, width, height) for i, height in enumerate(ENCODER)
        )
        self.decoder = nn.ModuleList(RSU(2 * width, mid, width, height) for height in DECODER)
        self.side = nn.ModuleList(nn.Conv2d(width, 1, 3, padding=1) for _ in ENCODER)  # finest first
        self.fuse = nn.Conv2d(len(ENCODER), 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        size = self.config.image_size
        x = standardize(resize(image, size), IMAGENET_MEAN, IMAGENET_STD).to(self.dtype)
        return resize(torch.sigmoid(self.logits(x)), (image.shape[-2], image.shape[-1])).clamp(0, 1)

    def logits(self, x: Tensor) -> Tensor:
        """Return the fused map before its sigmoid, [B,1,h,w], of standardised pictures [B,3,h,w]."""
        skips: list[Tensor] = []
        for i, block in enumerate(self.encoder):
            x = block(x if i == 0 else halve(x))
            skips.append(x)
        maps = [skips.pop()]
        for block in self.decoder:
            skip = skips.pop()
            maps.append(block(torch.cat([upsample(maps[-1], skip), skip], dim=1)))
        finest_first = [side(x) for side, x in zip(self.side, maps[::-1], strict=True)]
        return self.fuse(torch.cat([upsample(x, finest_first[0]) for x in finest_first], dim=1))


class RSU(nn.Module):
    """Residual U-block: a U-Net of `height` levels around which the input, projected, is added again.

    Height 0 stands for RSU-4F, whose four levels have growing dilation in place of pooling.
    """

    def __init__(self, c_in: int, mid: int, c_out: int, height: int) -> None:
        super().__init__()
        self.pools = height > 0
        dilations = [1] * (height - 1) + [2] if self.pools else [1, 2, 4, 8]
        self.enter = convolution(c_in, c_out)
        self.down = nn.ModuleList(
            convolution(mid if i else c_out, mid, dilation) for i, dilation in enumerate(dilations)
        )
        upward = dilations[-2::-1]
        self.up = nn.ModuleList(
            convolution(2 * mid, mid if i < len(upward) - 1 else c_out, dilation)
            for i, dilation in enumerate(upward)
        )

    def forward(self, x: Tensor) -> Tensor:
        entered = x = self.enter(x)
        skips: list[Tensor] = []
        last = len(self.down) - 1
        for i, layer in enumerate(self.down):
            x = layer(halve(x) if self.pools and 0 < i < last else x)  # the last level is dilated instead
            skips.append(x)
        x = skips.pop()
        for layer in self.up:
            skip = skips.pop()
            x = layer(torch.cat([upsample(x, skip), skip], dim=1))
        return x + entered


def convolution(c_in: int, c_out: int, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, padding=dilation, dilation=dilation), nn.ReLU(inplace=True)
    )


def halve(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, ceil_mode=True)


def upsample(x: Tensor, like: Tensor) -> Tensor:
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)
