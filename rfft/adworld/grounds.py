"""Ways in which the surface meets what is behind it: its shape, and what it looks like.

A shape is a mask [64, 64] of the surface in [0, 1]; it takes (place, rng). Before the product's base there is
ground wherever the horizon lies above it.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from rfft.adworld import assets
from rfft.adworld.canvas import COLUMNS, ROWS, SIZE, Mask
from rfft.adworld.placement import Placement

Ground = Callable[[str, Placement, np.random.Generator], tuple[Mask, NDArray[np.float32]]]


def flat(surface: str, place: Placement, rng: np.random.Generator) -> tuple[Mask, NDArray[np.float32]]:
    """The surface up to a level horizon."""
    return _above(place.horizon), _surface(surface, place.horizon, rng)


def slanted(surface: str, place: Placement, rng: np.random.Generator) -> tuple[Mask, NDArray[np.float32]]:
    """A far edge that is not level."""
    slope = rng.uniform(-0.16, 0.16)
    edge = place.horizon + slope * (COLUMNS - place.centre)
    return _above(edge), _surface(surface, max(place.horizon - 8, 1), rng)


def round_table(surface: str, place: Placement, rng: np.random.Generator) -> tuple[Mask, NDArray[np.float32]]:
    """A table whose far edge is round."""
    bend = rng.uniform(3, 9)
    edge = place.horizon + bend * ((COLUMNS - place.centre) / (SIZE / 2)) ** 2
    return _above(edge), _surface(surface, place.horizon, rng)


def front(surface: str, place: Placement, rng: np.random.Generator) -> tuple[Mask, NDArray[np.float32]]:
    """A table top that ends before the picture does: its front edge is seen."""
    rgb = _surface(surface, place.horizon, rng)
    row = min(max(place.base, place.horizon) + int(rng.integers(3, 7)), SIZE)
    rgb[row:] *= rng.uniform(0.3, 0.7)
    rgb[row : row + 1] *= rng.uniform(1.1, 1.6)
    return _above(place.horizon), rgb


def matte(surface: str, place: Placement, rng: np.random.Generator) -> tuple[Mask, NDArray[np.float32]]:
    """A plain surface of the material's colour, without its grain."""
    rgb = _surface(surface, place.horizon, rng)
    colour = rgb[place.horizon :].mean((0, 1)) * rng.uniform(0.8, 1.2)
    return _above(place.horizon), np.broadcast_to(colour, rgb.shape) * _nearer(place.horizon)


def cove(surface: str, place: Placement, rng: np.random.Generator) -> tuple[Mask, NDArray[np.float32]]:
    """A photographer's cove: ground and wall run into each other."""
    return _above(place.horizon, rng.uniform(5, 12)), _surface(surface, max(place.horizon - 10, 1), rng)


def checker(surface: str, place: Placement, rng: np.random.Generator) -> tuple[Mask, NDArray[np.float32]]:
    """Tiles in perspective."""
    distance = (ROWS - place.horizon + 4).clip(1)
    u, v = (COLUMNS - place.centre) / distance, 60 / distance
    tiles = (np.floor(u * rng.uniform(1.5, 3)) + np.floor(v * rng.uniform(0.8, 1.5))) % 2
    tone = 1 + rng.uniform(0.1, 0.25) * (2 * tiles - 1)
    return _above(place.horizon), _surface(surface, place.horizon, rng) * tone[..., None]


def planks(surface: str, place: Placement, rng: np.random.Generator) -> tuple[Mask, NDArray[np.float32]]:
    """Boards that run away from the viewer."""
    u = (COLUMNS - place.centre) / (ROWS - place.horizon + rng.uniform(3, 12)).clip(1)
    board = np.floor(u * rng.uniform(1.5, 5) + rng.random())
    tone = (1 + rng.uniform(0.05, 0.2) * np.sin(board * 12.9898 + rng.uniform(0, 6))).astype(np.float32)
    return _above(place.horizon), _surface(surface, place.horizon, rng) * tone[..., None]


def inlay(surface: str, place: Placement, rng: np.random.Generator) -> tuple[Mask, NDArray[np.float32]]:
    """Level bands of another tone."""
    band = np.floor(60 / (ROWS - place.horizon + 4).clip(1) * rng.uniform(0.6, 2) + rng.random())
    tone = (1 + rng.uniform(0.05, 0.2) * np.where(band % 2, 1, -1)).astype(np.float32)
    return _above(place.horizon), _surface(surface, place.horizon, rng) * tone[..., None]


def rug(surface: str, place: Placement, rng: np.random.Generator) -> tuple[Mask, NDArray[np.float32]]:
    """Another material lies below the product."""
    rgb = _surface(surface, place.horizon, rng)
    other = assets.SURFACES[rng.integers(len(assets.SURFACES))]
    mask = np.zeros((SIZE, SIZE), np.float32)
    axes = (place.width * rng.uniform(0.7, 1.1), rng.uniform(4, 8))
    cv2.ellipse(mask, ((place.centre, place.base - 1), (2 * axes[0], 2 * axes[1]), 0), 1.0, -1, cv2.LINE_AA)
    rgb += mask[..., None] * (_surface(other, place.horizon, rng) - rgb)
    return _above(place.horizon), rgb


GROUNDS: dict[str, Ground] = {
    ground.__name__: ground
    for ground in (flat, slanted, round_table, front, matte, cove, planks, inlay, checker, rug)
}


def cut_off(mask: Mask, place: Placement, rng: np.random.Generator) -> Mask:
    """Return the mask of a table that ends below the product: more than half of it stands on nothing."""
    reach = place.width * rng.uniform(0.1, 0.4)
    if rng.random() < 0.5:
        return mask * (place.left + reach > COLUMNS)
    return mask * (place.left + place.width - reach < COLUMNS)


def _above(edge: float | NDArray[np.floating], softness: float = 1.0) -> Mask:
    """Return the mask of what lies below a far edge, which is a row or a row for each column."""
    return np.broadcast_to(((ROWS - edge) / softness + 1).clip(0, 1), (SIZE, SIZE)).astype(np.float32)


def _surface(surface: str, horizon: int, rng: np.random.Generator) -> NDArray[np.float32]:
    return assets.ground(surface, horizon, SIZE, rng).astype(np.float32) * _nearer(horizon)


def _nearer(horizon: int) -> NDArray[np.float32]:
    """Return how light the ground is by row: nearer ground is brighter."""
    return (0.78 + 0.3 * (ROWS - horizon) / (SIZE - horizon))[..., None].astype(np.float32)
