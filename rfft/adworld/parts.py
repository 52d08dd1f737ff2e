"""Parts that grow on a product and are not its own: shape hallucination.

Each draws into a layer [64, 64], uint8, where the part is, and takes (layer, place, drop, rng); `drop` is how
far below the product's base it may reach, in pixels. They are thick
enough to be there after a VAE's round trip, too.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from rfft.adworld.assets import Image8
from rfft.adworld.canvas import SIZE, Canvas
from rfft.adworld.placement import Placement, ramp

Part = Callable[[Image8, Placement, int, np.random.Generator], None]


def legs(layer: Image8, place: Placement, drop: int, rng: np.random.Generator) -> None:
    """Two to four straight legs."""
    for x in _spread(place, 0.76, int(rng.integers(2, 5))):
        foot = (round(x + rng.uniform(-1.5, 1.5)), place.base + drop)
        cv2.line(layer, (round(x), place.base - 4), foot, 255, int(rng.integers(3, 5)))


def bent_legs(layer: Image8, place: Placement, drop: int, rng: np.random.Generator) -> None:
    """Legs with knees, splayed or bowed."""
    bow = rng.uniform(-4, 5)
    for x in _spread(place, 0.7, int(rng.integers(2, 4))):
        out = np.sign(x - place.centre) * bow
        points = [(x, place.base - 4), (x + out, place.base + drop / 2), (x + 0.3 * out, place.base + drop)]
        _line(layer, points, int(rng.integers(3, 5)))


def stilts(layer: Image8, place: Placement, drop: int, rng: np.random.Generator) -> None:
    """Thin legs with a bar across."""
    left, right = place.left + 0.1 * place.width, place.left + 0.9 * place.width
    for x in np.linspace(left, right, rng.integers(2, 5)):
        _line(layer, [(x, place.base - 3), (x, place.base + drop)], int(rng.integers(2, 4)))
    row = place.base + drop * rng.uniform(0.4, 0.8)
    _line(layer, [(left, row), (right, row)], int(rng.integers(2, 4)))


def pedestal(layer: Image8, place: Placement, drop: int, rng: np.random.Generator) -> None:
    """A block of the product's colour below it."""
    half = place.width * rng.uniform(0.4, 0.65)
    corner = (round(place.centre - half), place.base - 3)
    cv2.rectangle(layer, corner, (round(place.centre + half), place.base + max(drop - 2, 3)), 255, -1)


def plate(layer: Image8, place: Placement, drop: int, rng: np.random.Generator) -> None:
    """A wide disc at its foot."""
    size = (place.width * rng.uniform(1.3, 1.8), rng.uniform(6, 9))
    cv2.ellipse(layer, ((place.centre, place.base), size, 0), 255, -1)


def wheels(layer: Image8, place: Placement, drop: int, rng: np.random.Generator) -> None:
    """Wheels at its foot."""
    radius = round(drop * rng.uniform(0.4, 0.6))
    for share in (0.15, 0.85) if rng.random() < 0.7 else (0.15, 0.5, 0.85):
        x = round(place.left + share * place.width)
        cv2.circle(layer, (x, place.base + radius // 2), radius, 255, -1)


def extension(layer: Image8, place: Placement, drop: int, rng: np.random.Generator) -> None:
    """A stub at a side or on top."""
    side = int(rng.integers(3))  # left, right, top
    length, thickness = rng.uniform(9, 15), rng.uniform(5, 9)
    centre, size = _beside(place, side, length, rng), (length + 5, thickness)
    cv2.ellipse(layer, (centre, size if side < 2 else size[::-1], rng.uniform(-15, 15)), 255, -1)


def handle(layer: Image8, place: Placement, drop: int, rng: np.random.Generator) -> None:
    """A ring at a side or on top, as a cup's handle."""
    centre = _beside(place, int(rng.integers(3)), rng.uniform(7, 12), rng)
    size = (rng.uniform(9, 14), rng.uniform(9, 14))
    cv2.ellipse(layer, (centre, size, 0), 255, int(rng.integers(3, 5)))


def tube(layer: Image8, place: Placement, drop: int, rng: np.random.Generator) -> None:
    """A hose that leaves it in a curve."""
    side = rng.choice([-1, 1])
    x = place.centre + side * place.width * 0.4
    y = place.top + rng.uniform(0.2, 0.8) * (place.base - place.top)
    bend = rng.uniform(-12, 12)
    reach = ((0, 0), (7, bend / 3), (12, bend), (16, 1.5 * bend))
    points = [(x + side * right, y + down) for right, down in reach]
    _line(layer, points, int(rng.integers(3, 6)))


def antenna(layer: Image8, place: Placement, drop: int, rng: np.random.Generator) -> None:
    """Rods on top of it."""
    for _ in range(int(rng.integers(2, 5))):
        x = place.centre + rng.uniform(-0.35, 0.35) * place.width
        tip = (x + rng.uniform(-8, 8), max(place.top - rng.uniform(7, 14), 0))
        _line(layer, [(x, place.top + 4), tip], int(rng.integers(2, 4)))


def knob(layer: Image8, place: Placement, drop: int, rng: np.random.Generator) -> None:
    """A ball on top of it."""
    radius = round(rng.uniform(4, 7))
    x = round(place.centre + rng.uniform(-0.2, 0.2) * place.width)
    cv2.circle(layer, (x, place.top - radius + 3), radius, 255, -1)


def bulge(layer: Image8, place: Placement, drop: int, rng: np.random.Generator) -> None:
    """A growth of no regular shape at one side."""
    centre = np.array(_beside(place, int(rng.integers(3)), rng.uniform(6, 12), rng))
    angles = np.linspace(0, 2 * np.pi, 9)[:-1]
    radius = rng.uniform(4, 9, 8)
    points = centre + np.stack([np.cos(angles), np.sin(angles)], 1) * radius[:, None]
    cv2.fillPoly(layer, [np.rint(points).astype(np.int32)], 255)


def wings(layer: Image8, place: Placement, drop: int, rng: np.random.Generator) -> None:
    """A triangle at each side."""
    height = (place.base - place.top) * rng.uniform(0.4, 0.8)
    middle, reach = place.top + rng.uniform(0.3, 0.6) * (place.base - place.top), rng.uniform(7, 13)
    for tip in (place.left - reach, place.left + place.width + reach):
        points = [(place.centre, middle - height / 2), (place.centre, middle + height / 2), (tip, middle)]
        cv2.fillPoly(layer, [np.rint(np.array(points)).astype(np.int32)], 255)


PARTS: dict[str, Part] = {
    part.__name__: part
    for part in (
        *(legs, bent_legs, stilts, pedestal, plate, wheels, extension),
        *(handle, tube, antenna, knob, bulge, wings),
    )
}


def grow(canvas: Canvas, place: Placement, part: Part, rng: np.random.Generator) -> None:
    """Paint a part onto a product, in the colour that the product has where it begins."""
    drop = min(int(rng.integers(7, 12)), SIZE - 1 - place.base)
    layer = np.zeros((SIZE, SIZE), np.uint8)
    part(layer, place, drop, rng)
    below = layer[place.base :].any()
    colour = place.colour(lower_third=bool(below)) * rng.uniform(0.72, 1.02)
    shaded = np.clip(colour * np.linspace(1.06, 0.88, SIZE)[:, None, None], 0, 255)
    rgba = np.concatenate([np.broadcast_to(shaded, (SIZE, SIZE, 3)), layer[..., None]], -1).astype(np.uint8)
    canvas.paint(rgba, 0, 0, ramp(min(place.horizon, place.base - 8), place.base), 255.0)


def grow_copy(canvas: Canvas, place: Placement, rng: np.random.Generator) -> None:
    """Paint the product's own mirror image onto it, shifted to a side or upwards: it seems to go on."""
    h, w = place.icon.shape[:2]
    if rng.random() < 0.6:
        side = rng.choice([-1, 1])
        left, top, copy = place.left + round(side * w * rng.uniform(0.4, 0.7)), place.top, place.icon[:, ::-1]
    else:
        left, top, copy = place.left, place.top - round(h * rng.uniform(0.3, 0.55)), place.icon[::-1]
    canvas.paint(copy, left, top, ramp(min(place.horizon, place.base - 8), place.base), 255.0)


def _spread(place: Placement, share: float, count: int) -> NDArray[np.float64]:
    """Return columns, evenly over the middle `share` of the product's width."""
    half = share * place.width / 2
    return np.linspace(place.centre - half, place.centre + half, count)


def _line(layer: Image8, points: list[tuple[float, float]], width: int) -> None:
    cv2.polylines(layer, [np.rint(np.array(points)).astype(np.int32)], False, 255, width)


def _beside(place: Placement, side: int, length: float, rng: np.random.Generator) -> tuple[float, float]:
    """Return the middle (x, y) of a part of a length at the left (0), the right (1), or on top (2)."""
    if side == 2:
        return place.centre + rng.uniform(-0.25, 0.25) * place.width, place.top - length / 2 + 3
    x = place.left - length / 2 + 3 if side == 0 else place.left + place.width + length / 2 - 3
    return x, place.top + rng.uniform(0.35, 0.8) * (place.base - place.top)
