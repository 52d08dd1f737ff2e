"""The product's own pixels: over the picture, and as a mask of latents. Shapes: H W pixels, h w latent."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def paste(image: Tensor, product: Tensor) -> Tensor:
    """Lay the product's own pixels [B,4,H,W] over image [B,3,H,W], through its straight alpha."""
    rgb, alpha = product[:, :3], product[:, 3:]
    return alpha * rgb + (1 - alpha) * image


def latent_mask(product: Tensor, size: tuple[int, int]) -> Tensor:
    """Return M [B,1,h,w]: 1 where all that a latent covers of the product [B,4,H,W] is more than half opaque.

    Diffusers samples one pixel of each latent; the edge would bring x_o's grey surroundings into the picture.
    """
    around = (product[:, 3:] <= 0.5).to(product.dtype)
    return 1 - F.adaptive_max_pool2d(around, size)
