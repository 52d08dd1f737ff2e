"""Ways in which a product drowns in its background: indistinctiveness.

Each takes (canvas, place, icons, rng).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from rfft.adworld.assets import Icon
from rfft.adworld.canvas import SIZE, Canvas, resized
from rfft.adworld.placement import Placement, ramp

Hide = Callable[[Canvas, Placement, Sequence[Icon], np.random.Generator], None]


def own_colour(canvas: Canvas, place: Placement, icons: Sequence[Icon], rng: np.random.Generator) -> None:
    """A background of the product's own colour."""
    grey = canvas.rgb.mean(-1, keepdims=True)
    tone = 0.85 + 0.306 * (grey - grey.mean()) / 128
    canvas.rgb[:] = place.colour() * tone + 0.15 * canvas.rgb


def haze(canvas: Canvas, place: Placement, icons: Sequence[Icon], rng: np.random.Generator) -> None:
    """Fog of the product's colour before everything behind it."""
    share = rng.uniform(0.75, 0.9)
    lightness = np.linspace(rng.uniform(0.9, 1.1), rng.uniform(0.9, 1.1), SIZE)[:, None, None]
    canvas.rgb += share * (place.colour() * lightness - canvas.rgb)


def camouflage(canvas: Canvas, place: Placement, icons: Sequence[Icon], rng: np.random.Generator) -> None:
    """The product's own pattern all over the background."""
    h, w = place.icon.shape[:2]
    inner = place.icon[h // 4 : max(3 * h // 4, h // 4 + 2), w // 4 : max(3 * w // 4, w // 4 + 2)]
    patch = np.where(inner[..., 3:] > 128, inner[..., :3], place.colour()).astype(np.float32)
    patch = np.concatenate([patch, patch[:, ::-1]], 1)
    patch = np.concatenate([patch, patch[::-1]], 0)
    tiled = np.tile(patch, (SIZE // len(patch) + 1, SIZE // patch.shape[1] + 1, 1))[:SIZE, :SIZE]
    canvas.rgb += rng.uniform(0.65, 0.9) * (tiled - canvas.rgb)


def pattern(canvas: Canvas, place: Placement, icons: Sequence[Icon], rng: np.random.Generator) -> None:
    """Bold stripes or checks of the product's dark and light colours."""
    solid = place.solid()
    dark, light = np.percentile(solid, 15, axis=0), np.percentile(solid, 85, axis=0)
    period, angle = rng.uniform(5, 10), rng.uniform(0, np.pi)
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period)
    if rng.random() < 0.5:
        wave = wave * np.sin(2 * np.pi * (y * np.cos(angle) - x * np.sin(angle)) / period)
    bold = np.where(wave[..., None] > 0, light * 1.1 + 15, dark * 0.85)
    canvas.rgb += rng.uniform(0.75, 0.95) * (bold - canvas.rgb)


def pile(canvas: Canvas, place: Placement, icons: Sequence[Icon], rng: np.random.Generator) -> None:
    """Other things all around the product."""
    _scatter(canvas, place, [_any(icons, rng) for _ in range(rng.integers(7, 12))], (9, 20), rng)


def heap(canvas: Canvas, place: Placement, icons: Sequence[Icon], rng: np.random.Generator) -> None:
    """Very many small things around the product."""
    _scatter(canvas, place, [_any(icons, rng) for _ in range(rng.integers(18, 28))], (6, 12), rng)


def copies(canvas: Canvas, place: Placement, icons: Sequence[Icon], rng: np.random.Generator) -> None:
    """The product once more, and again, around itself."""
    own = Icon("", "", 1.0, place.icon)
    height = place.icon.shape[0]
    _scatter(canvas, place, [own] * int(rng.integers(5, 9)), (0.5 * height, 0.9 * height), rng)


def confetti(canvas: Canvas, place: Placement, icons: Sequence[Icon], rng: np.random.Generator) -> None:
    """Coloured shapes all around the product."""
    for _ in range(int(rng.integers(50, 110))):
        x, y = _around(place, rng)
        colour = tuple(rng.uniform(0, 255, 3).tolist())
        size = rng.uniform(3, 8, 2).tolist()
        if rng.random() < 0.5:
            cv2.ellipse(canvas.rgb, ((x, y), tuple(size), rng.uniform(0, 180)), colour, -1, cv2.LINE_AA)
        else:
            corners = cv2.boxPoints(((x, y), tuple(size), rng.uniform(0, 180)))
            cv2.fillPoly(canvas.rgb, [np.rint(corners).astype(np.int32)], colour, cv2.LINE_AA)


def foliage(canvas: Canvas, place: Placement, icons: Sequence[Icon], rng: np.random.Generator) -> None:
    """Strokes of leaves and twigs, many of them of the product's colours."""
    solid = place.solid()
    for _ in range(int(rng.integers(80, 150))):
        x, y = _around(place, rng)
        own = rng.random() < 0.5
        base = solid[rng.integers(len(solid))] if own else rng.uniform((30, 50, 10), (120, 160, 60))
        angle, length = rng.uniform(0, np.pi), rng.uniform(3, 10)
        aside, down = length * np.cos(angle) / 2, length * np.sin(angle) / 2
        start, end = (round(x - aside), round(y - down)), (round(x + aside), round(y + down))
        colour = tuple((base * rng.uniform(0.6, 1.2)).clip(0, 255).tolist())
        cv2.line(canvas.rgb, start, end, colour, int(rng.integers(1, 3)), cv2.LINE_AA)


CLUTTER: dict[str, Hide] = {
    way.__name__: way
    for way in (own_colour, haze, camouflage, pattern, pile, heap, copies, confetti, foliage)
}


def _any(icons: Sequence[Icon], rng: np.random.Generator) -> Icon:
    return icons[int(rng.integers(len(icons)))]


def _around(place: Placement, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a point (x, y) near the product."""
    h, w = place.icon.shape[:2]
    return np.array([place.centre + rng.normal(0, 0.8) * w, place.base - h / 2 + rng.normal(0, 0.6) * h])


def _scatter(
    canvas: Canvas,
    place: Placement,
    things: Sequence[Icon],
    heights: tuple[float, float],
    rng: np.random.Generator,
) -> None:
    h, w = place.icon.shape[:2]
    for thing in things:
        icon = resized(thing, rng.uniform(*heights))
        left = place.left + rng.uniform(-0.45, 1.1) * w - icon.shape[1] / 4
        top = place.top + rng.uniform(-0.3, 0.9) * h - icon.shape[0] / 4
        canvas.paint(icon, round(left), round(top), ramp(place.horizon, place.base), 130.0)
