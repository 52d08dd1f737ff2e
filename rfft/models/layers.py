"""Building blocks that the networks of this package share. Pictures are [B,C,H,W] in [0,1]."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfft.types import Batch, Size, sides

GREY = 0.5
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def resize(x: Tensor, size: Size) -> Tensor:
    """Bilinear resize to size x size or (height, width), anti-aliased when shrinking; differentiable."""
    height, width = sides(size)
    if x.shape[-2:] == (height, width):
        return x
    shrinks = x.shape[-2] > height or x.shape[-1] > width
    # Anti-aliased resampling has no bfloat16 kernel on the CPU.
    resized = F.interpolate(
        x.float(), (height, width), mode="bilinear", antialias=shrinks, align_corners=False
    )
    return resized.to(x.dtype)


def resize_shorter_side(image: Tensor, size: int) -> Tensor:
    """Bring the shorter side of pictures [B,3,H,W] in [0,1] to `size` by Pillow's bicubic filter.

    The longer side is rounded down, as by transformers and torchvision; differentiable.
    """
    height, width = image.shape[-2:]
    shorter = min(height, width)
    if shorter == size:
        return image
    shape = size * height // shorter, size * width // shorter
    # antialias=True means Pillow's filter even where the picture grows; it overshoots at edges.
    resized = F.interpolate(image.float(), shape, mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1).to(image.dtype)


def normalize(x: Tensor) -> Tensor:
    """[0,1] to about zero mean and unit variance (one constant, close to ImageNet's, for every channel)."""
    return (x - GREY) / 0.25


def standardize(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """[0,1] to the zero mean and unit variance, channel by channel, that a published network expects."""
    return (x - x.new_tensor(mean)[:, None, None]) / x.new_tensor(std)[:, None, None]


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


class ScoreReward(nn.Module):
    """A network that scores pictures by their prompts, as a reward (types.Reward): its loss is -score."""

    def score(self, image: Tensor, prompts: list[str]) -> Tensor:
        """[B], differentiable in the picture."""
        raise NotImplementedError

    def forward(self, image: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return -score per picture [B], and the mean score."""
        score = self.score(image, batch.prompts)
        return -score, {"score": score.mean()}


def score_head(width: int) -> nn.Sequential:
    """Features [B,width] -> score [B,1]: linear layers alone, as in LAION's predictor and ImageReward.

    In training, dropouts lay between the first ones; they keep their places in the published numbering, which
    is 0, 2, 4, 6, 7.
    """
    sizes = (width, 1024, 128, 64, 16, 1)
    layers: list[nn.Module] = []
    for i, (c_in, c_out) in enumerate(pairwise(sizes)):
        layers += [nn.Linear(c_in, c_out)] + ([nn.Identity()] if i < 3 else [])
    return nn.Sequential(*layers)
