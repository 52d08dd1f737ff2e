"""Building blocks that the networks of this package share. Pictures are [B,C,H,W] in [0,1]."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GREY = 0.5


def resize(x: Tensor, size: int) -> Tensor:
    """Bilinear resize to size x size, anti-aliased when shrinking; differentiable."""
    if x.shape[-2:] == (size, size):
        return x
    shrinks = x.shape[-2] > size or x.shape[-1] > size
    # Anti-aliased resampling has no bfloat16 kernel on the CPU.
    resized = F.interpolate(x.float(), (size, size), mode="bilinear", antialias=shrinks, align_corners=False)
    return resized.to(x.dtype)


def normalize(x: Tensor) -> Tensor:
    """[0,1] to about zero mean and unit variance (one constant, close to ImageNet's, for every channel)."""
    return (x - GREY) / 0.25


def composite_on_grey(product: Tensor) -> Tensor:
    """RGBA [B,4,H,W] -> RGB on mid-grey and alpha, [B,4,H,W]."""
    rgb, alpha = product[:, :3], product[:, 3:]
    return torch.cat([GREY + alpha * (rgb - GREY), alpha], dim=1)


def fuse_early(image: Tensor, product: Tensor, size: int) -> Tensor:
    """Image and product in one stack of normalised channels [B,7,size,size]."""
    return normalize(resize(torch.cat([image, composite_on_grey(product)], dim=1), size))


def vgg_stage(c_in: int, c_out: int, convolutions: int = 2) -> nn.Sequential:
    """Convolutions of 3x3 with batch norm and ReLU (VGG, arXiv 1409.1556); keeps the resolution."""
    layers: list[nn.Module] = []
    for i in range(convolutions):
        layers += [
            nn.Conv2d(c_in if i == 0 else c_out, c_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)
