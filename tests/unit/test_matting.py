"""From a saliency map to alpha: a known disc, seen by a network that blurs it."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from rfft.data.matting import Edge, cut_out

RED, GREY = (190, 40, 50), (215, 214, 210)


def disc(height: int, width: int, centre: tuple[int, int], radius: int) -> NDArray[np.bool_]:
    rows, columns = np.indices((height, width))
    return (columns - centre[0]) ** 2 + (rows - centre[1]) ** 2 < radius**2


def photo_of(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.where(mask[..., None], RED, GREY).astype(np.uint8)


def blurred_red(blur: float) -> Callable[[Tensor], Tensor]:
    """Finds what is red, as roughly as a network would."""

    def saliency(image: Tensor) -> Tensor:
        red = (image[0, 0] - image[0, 1] > 0.3).float().numpy()
        return torch.from_numpy(cv2.GaussianBlur(red, (0, 0), blur))[None, None]

    return saliency


@pytest.mark.parametrize(("height", "width", "radius"), [(300, 400, 90), (1500, 1100, 200), (900, 2400, 60)])
def test_alpha_follows_the_photos_edge(height: int, width: int, radius: int) -> None:
    mask = disc(height, width, (width // 3, height // 2), radius)
    cutout = cut_out(photo_of(mask), blurred_red(4), Edge())
    assert cutout.shape == (height, width, 4)
    found = cutout[..., 3] > 127
    assert (found & mask).sum() / (found | mask).sum() > 0.99
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    assert (cutout[distance > radius / 3] == (*RED, 255)).all()
    assert not cutout[cutout[..., 3] == 0].any()  # no hidden background
    away = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5)
    assert not cutout[away > radius / 2].any()


def test_softness_is_the_width_of_the_ramp() -> None:
    photo = photo_of(disc(300, 400, (150, 150), 80))
    soft, hard = (cut_out(photo, blurred_red(4), Edge(0.5, softness))[..., 3] for softness in (1.0, 0.0))
    assert set(np.unique(hard)) == {0, 255}
    assert ((soft > 0) & (soft < 255)).sum() > 500


def test_a_higher_threshold_cuts_closer() -> None:
    photo = photo_of(disc(300, 400, (150, 150), 80))
    areas = [
        (cut_out(photo, blurred_red(6), Edge(level, 0.0))[..., 3] > 0).sum() for level in (0.1, 0.5, 0.9)
    ]
    assert areas[0] > areas[1] > areas[2] > 0


@pytest.mark.parametrize("radius", [0, 3])
def test_nothing_or_a_speck_is_no_product(radius: int) -> None:
    assert not cut_out(photo_of(disc(300, 400, (150, 150), radius)), blurred_red(0.5), Edge()).any()


def test_a_product_cut_off_by_the_border() -> None:
    mask = disc(300, 400, (0, 150), 100)
    found = cut_out(photo_of(mask), blurred_red(4), Edge())[..., 3] > 127
    assert (found & mask).sum() / (found | mask).sum() > 0.98
