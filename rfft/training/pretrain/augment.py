"""The same scene and verdict in other looks, so that no network learns the few products and places by heart.

Pictures [B,3,H,W], products [B,4,H,W] in [0,1]; every change strikes half of a batch, by torch's generator.
Further channels of the products are maps of the scene, which are mirrored with it.
"""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rfft.diffusion.compositing import paste


def augment(image: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
    """A new look for picture and product, and the picture spoilt a little."""
    image, product = new_look(image, product)
    return spoil(image), product


def new_look(image: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
    """Mirrored; recoloured, picture and product alike; blurred around the product."""
    image, product = mirror(image, product)
    matrix = torch.where(_half(image)[..., 0], colour_matrices(len(image)), torch.eye(3))
    image, rgb = (_recolour(x, matrix) for x in (image, product[:, :3]))
    product = torch.cat([rgb, product[:, 3:]], dim=1)
    return torch.where(_half(image), paste(_blur(image), product[:, :4]), image), product


def spoil(image: Tensor) -> Tensor:
    """What happens to a picture on its way: another exposure, a pixel's shift, JPEG, noise."""
    image = torch.where(_half(image), _exposed(image), image)
    image = torch.where(_half(image) & _half(image), _shifted(image), image)
    image = torch.where(_half(image), jpeg(image, torch.randint(40, 96, (len(image),))), image)
    return torch.where(_half(image), _noisy(image), image)


def jpeg(image: Tensor, quality: Tensor) -> Tensor:
    """Return pictures [B,3,H,W] after JPEG of each one's quality [B], 1 to 100."""
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    decoded = []
    for picture, setting in zip(pixels, quality.tolist(), strict=True):
        _, file = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(setting)])
        decoded.append(np.asarray(cv2.imdecode(file, cv2.IMREAD_COLOR))[..., ::-1])
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).float() / 255


def mirror(image: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
    """Mirrored alone: colours and light stay."""
    mirrored = _half(image)
    return torch.where(mirrored, image.flip(-1), image), torch.where(mirrored, product.flip(-1), product)


def strange_names(ids: Tensor, comma: int, vocab_size: int) -> Tensor:
    """Caption tokens [B,L] with random ones in the product's name, which ends at the comma.

    What is said after an unknown name must be read all the same.
    """
    name = (ids == comma).cumsum(dim=1) == 0
    name[:, 0] = False  # the token of the beginning
    struck = name & _half(ids)[..., 0, 0] & (torch.rand(ids.shape) < 0.5)
    return torch.where(struck, torch.randint(vocab_size, ids.shape), ids)


def colour_matrices(count: int) -> Tensor:
    """Random turns of the hue, changes of saturation, and gains of the channels [B,3,3]."""
    angle, saturation = 0.6 * torch.randn(count, 1, 1), torch.empty(count, 1, 1).uniform_(0.5, 1.4)
    gain = (0.15 * torch.randn(count, 1, 1) + 0.08 * torch.randn(count, 3, 1)).exp()
    grey, identity = torch.full((3, 3), 1 / 3), torch.eye(3)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5
    turn = angle.cos() * (identity - grey) + angle.sin() * cross  # about the grey axis (Rodrigues)
    return gain * (grey + saturation * turn)


def _recolour(x: Tensor, matrix: Tensor) -> Tensor:
    return torch.einsum("bij,bjhw->bihw", matrix, x).clamp(0, 1)


def _exposed(x: Tensor) -> Tensor:
    gain, lift = (0.15 * torch.randn(2, len(x), 1, 1, 1)).unbind()
    return (x * gain.exp() + 0.3 * lift).clamp(0, 1)


def _shifted(x: Tensor) -> Tensor:
    down, right = torch.randint(-1, 2, (2,)).tolist()
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate").roll((-down, -right), dims=(-2, -1))
    return padded[..., 1:-1, 1:-1]


def _noisy(x: Tensor) -> Tensor:
    strength = torch.empty(len(x), 1, 1, 1).uniform_(0, 0.04)
    return (x + strength * torch.randn_like(x)).clamp(0, 1)


def _blur(x: Tensor) -> Tensor:
    kernel = torch.tensor([1.0, 4, 6, 4, 1]) / 16
    weight = torch.outer(kernel, kernel).expand(3, 1, 5, 5)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), weight, groups=3)


def _half(x: Tensor) -> Tensor:
    """Which of a batch are struck, [B,1,1,1]."""
    return torch.rand(len(x), 1, 1, 1) < 0.5
