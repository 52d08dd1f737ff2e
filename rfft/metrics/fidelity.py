"""How truly a product is shown: the generator's own rendering of it against its pixels.

Shapes: B pictures, H W pixels.
"""

import torch
from torch import Tensor

from rfft.metrics.library import torchmetrics

OPAQUE = 0.5  # alpha from which a pixel belongs to the product


def product_fidelity(image: Tensor, truth: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Return PSNR in dB [B] and SSIM [B] of a picture against the true one, within the product.

    `image` and `truth` are [B,3,H,W] in [0,1], `alpha` is [B,1,H,W]. SSIM's window is that of Wang et al.
    (2004): Gaussian, 11 px, sigma 1.5. Both are NaN where there is no product.
    """
    functional = torchmetrics("functional.image")
    inside = alpha > OPAQUE
    _, similarity = functional.structural_similarity_index_measure(
        image, truth, data_range=1.0, reduction="none", return_full_image=True
    )
    psnr, ssim = [], []
    for shown, wanted, similar, mask in zip(image, truth, similarity, inside.expand_as(image), strict=True):
        pair = shown[mask], wanted[mask]
        psnr.append(functional.peak_signal_noise_ratio(*pair, data_range=1.0))
        ssim.append(similar[mask].mean())
    return torch.stack(psnr), torch.stack(ssim)
