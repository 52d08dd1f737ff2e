"""Ways in which a product's shadow falls on the ground.

Each takes (canvas, place, row, rng); `row` is where the product meets the ground, or would meet it if it did
not float above.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from rfft.adworld.assets import Icon
from rfft.adworld.canvas import COLUMNS, ROWS, SIZE, Canvas, Mask, resized
from rfft.adworld.placement import Placement

Shadow = Callable[[Canvas, Placement, float, np.random.Generator], None]


def ellipse(canvas: Canvas, place: Placement, row: float, rng: np.random.Generator) -> None:
    """A soft ellipse below the product, as under an overcast sky; smaller and paler if it floats."""
    size, pale, softness = (0.8, 0.05, 1.3) if row > place.base else (1.0, 0.0, 1.2)
    width = size * place.width * rng.uniform(0.85, 1.1)
    centre = place.centre + rng.uniform(-2, 2)
    canvas.shade(centre, row, width, rng.uniform(0.55, 0.8) - pale, softness)


def wide(canvas: Canvas, place: Placement, row: float, rng: np.random.Generator) -> None:
    """A pale, very soft and wide one, beside a small dark core."""
    canvas.shade(place.centre, row, place.width * rng.uniform(1.3, 1.8), rng.uniform(0.35, 0.55), 3.0)
    canvas.shade(place.centre, row, place.width * 0.7, rng.uniform(0.3, 0.5), 1.0)


def penumbra(canvas: Canvas, place: Placement, row: float, rng: np.random.Generator) -> None:
    """A hard core within a soft rim that lies a little to one side."""
    aside = rng.uniform(-3, 3)
    canvas.shade(place.centre, row, place.width * rng.uniform(0.7, 0.95), rng.uniform(0.35, 0.6), 0.6)
    canvas.shade(place.centre + aside, row, place.width * 1.3, rng.uniform(0.25, 0.45), 2.5)


def streak(canvas: Canvas, place: Placement, row: float, rng: np.random.Generator) -> None:
    """A long flat shadow to one side, as of a low sun."""
    side = rng.choice([-1, 1])
    length = place.width * rng.uniform(1.4, 2.4)
    centre = place.centre + side * (length - 0.8 * place.width) / 2
    canvas.shade(centre, row, length, rng.uniform(0.4, 0.7), rng.uniform(0.8, 1.8))


def line(canvas: Canvas, place: Placement, row: float, rng: np.random.Generator) -> None:
    """A thin dark line of contact."""
    left, right = place.centre - place.width * 0.5, place.centre + place.width * 0.5
    mask = _polygon([(left, row - 1), (right, row - 1), (right, row + 1), (left, row + 1)])
    _darken(canvas, mask, rng.uniform(0.55, 0.85), rng.uniform(0.5, 0.9))


def box(canvas: Canvas, place: Placement, row: float, rng: np.random.Generator) -> None:
    """A rectangle in perspective below the product."""
    half, depth = place.width * rng.uniform(0.42, 0.6), rng.uniform(2, 5)
    shift = rng.uniform(-3, 3)
    corners = [
        (place.centre - half, row - depth / 2),
        (place.centre + half, row - depth / 2),
        (place.centre + half + shift, row + depth / 2),
        (place.centre - half + shift, row + depth / 2),
    ]
    _darken(canvas, _polygon(corners), rng.uniform(0.45, 0.75), rng.uniform(0.6, 1.6))


def trapezoid(canvas: Canvas, place: Placement, row: float, rng: np.random.Generator) -> None:
    """One that grows wider towards the viewer, from a light behind the product."""
    half, length = place.width * 0.45, rng.uniform(4, 8)
    wider = rng.uniform(1.15, 1.6)
    corners = [
        (place.centre - half, row - 1),
        (place.centre + half, row - 1),
        (place.centre + half * wider, row + length),
        (place.centre - half * wider, row + length),
    ]
    _darken(canvas, _polygon(corners), rng.uniform(0.35, 0.65), rng.uniform(0.8, 1.8))


def cast(canvas: Canvas, place: Placement, row: float, rng: np.random.Generator) -> None:
    """The product's own outline, laid flat to one side."""
    _darken(canvas, _laid_flat(place, row, rng), rng.uniform(0.35, 0.65), rng.uniform(0.6, 1.5))
    canvas.shade(place.centre, row, place.width * 0.8, rng.uniform(0.2, 0.4), 1.0)


def twin(canvas: Canvas, place: Placement, row: float, rng: np.random.Generator) -> None:
    """Two outlines, of two lamps."""
    for side in (-1, 1):
        mask = _laid_flat(place, row, rng, side)
        _darken(canvas, mask, rng.uniform(0.25, 0.45), rng.uniform(0.6, 1.2))
    canvas.shade(place.centre, row, place.width * 0.7, 0.3, 0.8)


def blob(canvas: Canvas, place: Placement, row: float, rng: np.random.Generator) -> None:
    """A patch of no regular shape."""
    angles = np.linspace(0, 2 * np.pi, 11)[:-1]
    radius = rng.uniform(0.7, 1.2, 10)
    x = place.centre + radius * np.cos(angles) * place.width * 0.6
    y = row + radius * np.sin(angles) * rng.uniform(2, 3.5)
    points = list(zip(x.tolist(), y.tolist(), strict=True))
    _darken(canvas, _polygon(points), rng.uniform(0.45, 0.7), 1.0)


def band(canvas: Canvas, place: Placement, row: float, rng: np.random.Generator) -> None:
    """A broad band across the picture that is darkest at the product."""
    near = np.exp(-(((COLUMNS - place.centre) / (place.width * rng.uniform(0.5, 0.8))) ** 2))
    low = np.exp(-(((ROWS - row) / rng.uniform(1.5, 2.5)) ** 2))
    _darken(canvas, (low * (0.25 + 0.75 * near)).astype(np.float32), rng.uniform(0.5, 0.75), 0.5)


def mirror(canvas: Canvas, place: Placement, row: float, rng: np.random.Generator) -> None:
    """A reflection in glossy ground; of a floating product it lies as far below the ground as that above."""
    top = round(2 * row - place.base) + 1
    rgba = place.icon[::-1].copy()
    fade = np.linspace(rng.uniform(0.35, 0.6), 0, len(rgba))[:, None]
    rgba[..., 3] = (rgba[..., 3] * fade).astype(np.uint8)
    canvas.tint(rgba, place.left, top)
    canvas.shade(place.centre, row, place.width * 0.8, rng.uniform(0.2, 0.4), 0.8)


def on_wall(canvas: Canvas, place: Placement, rng: np.random.Generator) -> None:
    """The outline of a product that hangs before a wall, on that wall."""
    left = place.left + int(rng.choice([-1, 1])) * int(rng.integers(3, 6))
    shape = resized(Icon("", "", 1.0, place.icon), len(place.icon) * 1.05)
    shape[..., :3] = 0
    shape[..., 3] = (shape[..., 3] * rng.uniform(0.3, 0.55)).astype(np.uint8)
    canvas.tint(shape, left, place.top + int(rng.integers(-1, 4)))


SHADOWS: dict[str, Shadow] = {
    shadow.__name__: shadow
    for shadow in (ellipse, wide, penumbra, streak, line, box, trapezoid, cast, twin, blob, band, mirror)
}


def _polygon(points: list[tuple[float, float]]) -> Mask:
    mask = np.zeros((SIZE, SIZE), np.float32)
    cv2.fillPoly(mask, [np.rint(np.array(points) * 16).astype(np.int32)], 1.0, cv2.LINE_AA, shift=4)
    return mask


def _laid_flat(place: Placement, row: float, rng: np.random.Generator, side: int | None = None) -> Mask:
    """Return the product's outline, sheared to one side and flattened, with its foot at `row`."""
    h, w = place.icon.shape[:2]
    aside = (side or rng.choice([-1, 1])) * rng.uniform(0.3, 1.1)  # pixels for each pixel of height
    flat = rng.choice([-1, 1]) * rng.uniform(0.12, 0.35)  # behind the product, or before it
    warp = np.array(
        [[1, -aside, place.left + aside * h], [0, flat, row - flat * h]], np.float32
    )  # the lowest row of the icon stays where it is
    alpha = place.icon[..., 3].astype(np.float32) / 255
    return np.asarray(cv2.warpAffine(alpha, warp, (SIZE, SIZE), flags=cv2.INTER_LINEAR), np.float32)


def _darken(canvas: Canvas, mask: Mask, strength: float, softness: float) -> None:
    soft = np.asarray(cv2.GaussianBlur(mask, (0, 0), softness), np.float32)
    canvas.rgb *= 1 - strength * soft[..., None]
