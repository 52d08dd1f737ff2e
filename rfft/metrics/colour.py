"""Colourfulness of backgrounds."""

from torch import Tensor


def colourfulness(images: Tensor, alpha: Tensor) -> Tensor:
    """Return the colourfulness [B] of the backgrounds of images [B,3,H,W] in [0,1].

    It is that of Hasler and Suesstrunk (2003): sigma + 0.3 mu of the opponent channels rg and yb, on values
    of 0..255. `alpha` [B,1,H,W] is that of the product, whose pixels do not count.
    """
    red, green, blue = (255 * images).unbind(dim=1)
    weight = 1 - alpha[:, 0]
    total = weight.sum(dim=(1, 2)).clamp_min(1e-6)

    def moments(channel: Tensor) -> tuple[Tensor, Tensor]:
        mean = (weight * channel).sum(dim=(1, 2)) / total
        deviation = channel - mean[:, None, None]
        return mean, (weight * deviation**2).sum(dim=(1, 2)) / total

    rg_mean, rg_variance = moments(red - green)
    yb_mean, yb_variance = moments((red + green) / 2 - blue)
    sigma = (rg_variance + yb_variance).sqrt()
    mu = (rg_mean**2 + yb_mean**2).sqrt()
    return sigma + 0.3 * mu
