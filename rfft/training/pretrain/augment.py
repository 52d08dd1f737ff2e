"""The same scene and verdict in other looks, so that no network learns the few products and places by heart.

Pictures [B,3,H,W], products [B,4,H,W] in [0,1]; every change strikes half of a batch, by torch's generator.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rfft.diffusion.compositing import paste


def augment(image: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
    """Mirrored; recoloured, picture and product alike; blurred around the product."""
    image, product = mirror(image, product)
    matrix = torch.where(_half(image)[..., 0], colour_matrices(len(image)), torch.eye(3))
    image, rgb = (_recolour(x, matrix) for x in (image, product[:, :3]))
    product = torch.cat([rgb, product[:, 3:]], dim=1)
    return torch.where(_half(image), paste(_blur(image), product), image), product


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


def _blur(x: Tensor) -> Tensor:
    kernel = torch.tensor([1.0, 4, 6, 4, 1]) / 16
    weight = torch.outer(kernel, kernel).expand(3, 1, 5, 5)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), weight, groups=3)


def _half(x: Tensor) -> Tensor:
    """Which of a batch are struck, [B,1,1,1]."""
    return torch.rand(len(x), 1, 1, 1) < 0.5
