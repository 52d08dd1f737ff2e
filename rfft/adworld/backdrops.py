"""What stands behind the surface, [64, 64, 3] in [0, 255]; each takes (word, split, horizon, rng).

`word` is the place that is asked for. A backdrop that shows no place says so in PLACELESS.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from rfft.adworld import assets
from rfft.adworld.canvas import COLUMNS, ROWS, SIZE

RGB = NDArray[np.float32]
Backdrop = Callable[[str, str, int, np.random.Generator], RGB]
PLACELESS = (
    *("gradient", "panels", "stripes", "texture", "collage", "mosaic", "weave"),
    *("bokeh", "clouds", "window"),
)


def panorama(word: str, split: str, horizon: int, rng: np.random.Generator) -> RGB:
    """The place, blurred, its horizon at the surface's edge."""
    return assets.backdrop(word, split, horizon, SIZE, rng).astype(np.float32)


def crop(word: str, split: str, horizon: int, rng: np.random.Generator) -> RGB:
    """Any part of the place, sharp or very blurred."""
    picture = assets.backdrop(word, split, horizon + int(rng.integers(-14, 15)), SIZE, rng)
    h, w = rng.integers(SIZE // 2, SIZE + 1, 2)
    top, left = rng.integers(SIZE - h + 1), rng.integers(SIZE - w + 1)
    part = cv2.resize(picture[top : top + h, left : left + w], (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    return cv2.GaussianBlur(part, (0, 0), rng.uniform(0.3, 3)).astype(np.float32)


def gradient(word: str, split: str, horizon: int, rng: np.random.Generator) -> RGB:
    """A wall that runs from one colour into another."""
    first, second = _colour(rng), _colour(rng)
    share = ROWS / SIZE if rng.random() < 0.6 else COLUMNS / SIZE
    return np.broadcast_to(first + (second - first) * share[..., None], (SIZE, SIZE, 3)).astype(np.float32)


def panels(word: str, split: str, horizon: int, rng: np.random.Generator) -> RGB:
    """A wall of two to four upright fields."""
    picture = np.empty((SIZE, SIZE, 3), np.float32)
    colour = _colour(rng)
    edges = [0, *sorted(rng.integers(4, SIZE - 4, int(rng.integers(1, 4))).tolist()), SIZE]
    for left, right in zip(edges, edges[1:], strict=False):
        picture[:, left:right] = colour * rng.uniform(0.7, 1.2)
    return picture.clip(0, 255)


def stripes(word: str, split: str, horizon: int, rng: np.random.Generator) -> RGB:
    """Pale striped wallpaper."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 12)
    wave = np.sin(2 * np.pi * (COLUMNS * np.cos(angle) + ROWS * np.sin(angle)) / period)
    return (_colour(rng) * (1 + rng.uniform(0.03, 0.1) * wave[..., None])).clip(0, 255).astype(np.float32)


def texture(word: str, split: str, horizon: int, rng: np.random.Generator) -> RGB:
    """A wall of wood, marble, linen or another of the surfaces."""
    tiles = assets.surface_textures(assets.SURFACES[rng.integers(len(assets.SURFACES))])
    tile = tiles[rng.integers(len(tiles))]
    top, left = rng.integers(0, 256 - SIZE, 2)
    part = tile[top : top + SIZE, left : left + SIZE].astype(np.float32)
    return part * rng.uniform(0.6, 1.1)


def collage(word: str, split: str, horizon: int, rng: np.random.Generator) -> RGB:
    """Large translucent papers, one over the other, sharp or blurred."""
    picture = np.broadcast_to(_colour(rng), (SIZE, SIZE, 3)).astype(np.float32)
    for _ in range(int(rng.integers(3, 9))):
        paper = np.zeros((SIZE, SIZE), np.float32)
        centre, size = rng.uniform(0, SIZE, 2).tolist(), rng.uniform(8, 40, 2).tolist()
        corners = cv2.boxPoints((centre, size, rng.uniform(0, 180)))
        cv2.fillPoly(paper, [np.rint(corners).astype(np.int32)], 1.0, cv2.LINE_AA)
        picture = picture + rng.uniform(0.3, 0.9) * paper[..., None] * (_colour(rng) - picture)
    return cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 2)).astype(np.float32)


def mosaic(word: str, split: str, horizon: int, rng: np.random.Generator) -> RGB:
    """Fields in tones of one or two colours."""
    count = rng.integers(3, 11, 2)
    share = rng.random((*count, 1)).astype(np.float32)
    fields = _colour(rng) * share + (1 - share) * _colour(rng)
    way = cv2.INTER_NEAREST if rng.random() < 0.6 else cv2.INTER_CUBIC
    return cv2.resize(fields, (SIZE, SIZE), interpolation=way).clip(0, 255).astype(np.float32)


def weave(word: str, split: str, horizon: int, rng: np.random.Generator) -> RGB:
    """A lattice of bars before a wall."""
    picture = np.broadcast_to(_colour(rng), (SIZE, SIZE, 3)).astype(np.float32).copy()
    period, width = int(rng.integers(7, 20)), int(rng.integers(1, 4))
    bar, shift = _colour(rng) * rng.uniform(0.4, 1.1), int(rng.integers(0, 7))
    upright, level = rng.random() < 0.8, rng.random() < 0.5
    for start in range(shift, SIZE, period):
        if upright:
            picture[:, start : start + width] = bar
        if level or not upright:
            picture[start : start + width] = bar
    return cv2.GaussianBlur(picture.clip(0, 255), (0, 0), rng.uniform(0.3, 1.2)).astype(np.float32)


def bokeh(word: str, split: str, horizon: int, rng: np.random.Generator) -> RGB:
    """Discs of light far out of focus."""
    picture = np.broadcast_to(_colour(rng) * rng.uniform(0.2, 0.8), (SIZE, SIZE, 3)).astype(np.float32)
    for _ in range(int(rng.integers(6, 16))):
        disc = np.zeros((SIZE, SIZE), np.float32)
        centre = tuple(rng.integers(0, SIZE, 2).tolist())
        cv2.circle(disc, centre, int(rng.integers(3, 9)), 1.0, -1, cv2.LINE_AA)
        picture = picture + rng.uniform(0.2, 0.5) * disc[..., None] * (_colour(rng) - picture)
    return cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.8, 2)).astype(np.float32)


def clouds(word: str, split: str, horizon: int, rng: np.random.Generator) -> RGB:
    """A mottled wall."""
    coarse = rng.standard_normal((SIZE // 4, SIZE // 4)).astype(np.float32)
    field = cv2.GaussianBlur(cv2.resize(coarse, (SIZE, SIZE)), (0, 0), rng.uniform(2, 5))
    tone = 1 + rng.uniform(0.1, 0.3) * field / field.std()
    return (_colour(rng) * tone[..., None]).clip(0, 255).astype(np.float32)


def window(word: str, split: str, horizon: int, rng: np.random.Generator) -> RGB:
    """The place behind a window's frame, or a picture on a wall."""
    wall = np.broadcast_to(_colour(rng), (SIZE, SIZE, 3)).astype(np.float32).copy()
    view = panorama(word, split, horizon, rng)
    left, top = rng.integers(2, 20, 2)
    right, bottom = left + rng.integers(24, 40), top + rng.integers(16, 30)
    wall[top - 2 : bottom + 2, left - 2 : right + 2] *= rng.uniform(0.4, 0.8)
    wall[top:bottom, left:right] = view[top:bottom, left:right]
    return wall


def _colour(rng: np.random.Generator) -> NDArray[np.float32]:
    hsv = np.array([[[rng.uniform(0, 180), rng.uniform(0, 110), rng.uniform(90, 250)]]]).astype(np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32)


BACKDROPS: dict[str, Backdrop] = {
    way.__name__: way
    for way in (
        *(panorama, crop, gradient, panels, stripes, texture, collage, mosaic, weave),
        *(bokeh, clouds, window),
    )
}
