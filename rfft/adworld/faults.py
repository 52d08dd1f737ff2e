"""Paints the two faults that are not a matter of place or size: hidden products and grown-on parts."""

import cv2
import numpy as np

from rfft.adworld import assets
from rfft.adworld.assets import Image8
from rfft.adworld.canvas import SIZE, Canvas, resized
from rfft.adworld.placement import Placement, ramp


def hide(canvas: Canvas, place: Placement, split: str, rng: np.random.Generator) -> None:
    """Make the product hard to see: a background of its own colour, or clutter all around it."""
    if rng.random() < 0.5:
        solid = place.icon[place.icon[..., 3] > 128]
        colour = np.median(solid[:, :3], 0) if len(solid) else np.full(3, 128.0)
        grey = canvas.rgb.mean(-1, keepdims=True)
        canvas.rgb[:] = colour * (0.85 + 0.306 * (grey - grey.mean()) / 128) + 0.15 * canvas.rgb
        return
    icons = assets.products(split)
    height, width = place.icon.shape[:2]
    for _ in range(int(rng.integers(7, 12))):
        icon = resized(icons[rng.integers(len(icons))], rng.uniform(9, 20))
        left = place.left + rng.uniform(-0.45, 1.1) * width - icon.shape[1] / 4
        top = place.top + rng.uniform(-0.3, 0.9) * height - icon.shape[0] / 4
        canvas.paint(icon, round(left), round(top), ramp(place.horizon, place.base), 130.0)


def hallucinate(canvas: Canvas, place: Placement, rng: np.random.Generator) -> None:
    """Grow legs, a pedestal or an extension in the product's own colour onto the product."""
    h, w = place.icon.shape[:2]
    kind = ("legs", "pedestal", "extension")[rng.integers(3)]
    rows = place.icon[-max(h // 3, 2) :] if kind != "extension" else place.icon
    solid = rows[rows[..., 3] > 128]
    colour = np.median(solid[:, :3], 0) if len(solid) else np.full(3, 110.0)
    drop = min(int(rng.integers(7, 12)), SIZE - 1 - place.base)
    layer = np.zeros((SIZE, SIZE), np.uint8)
    if kind == "legs":
        for x in np.linspace(place.left + 0.12 * w, place.left + 0.88 * w, int(rng.integers(2, 5))):
            lean = rng.uniform(-1.5, 1.5)
            cv2.line(
                layer,
                (round(x), place.base - 4),
                (round(x + lean), place.base + drop),
                255,
                int(rng.integers(2, 4)),
            )
    elif kind == "pedestal":
        half = w * rng.uniform(0.4, 0.65)
        corner = (round(place.centre - half), place.base - 3)
        cv2.rectangle(layer, corner, (round(place.centre + half), place.base + max(drop - 2, 3)), 255, -1)
    else:
        _draw_extension(layer, place, rng)
    shaded = np.clip(colour * rng.uniform(0.72, 1.02) * np.linspace(1.06, 0.88, SIZE)[:, None, None], 0, 255)
    rgba = np.concatenate([np.broadcast_to(shaded, (SIZE, SIZE, 3)), layer[..., None]], -1).astype(np.uint8)
    canvas.paint(rgba, 0, 0, ramp(min(place.horizon, place.base - 8), place.base), 255.0)


def _draw_extension(layer: Image8, place: Placement, rng: np.random.Generator) -> None:
    h, w = place.icon.shape[:2]
    side = int(rng.integers(3))  # left, right, top
    length, thickness = rng.uniform(9, 15), rng.uniform(5, 9)
    if side == 2:
        centre, size = (
            (place.centre + rng.uniform(-w / 4, w / 4), place.top - length / 2 + 3),
            (thickness, length + 5),
        )
    else:
        x = place.left - length / 2 + 3 if side == 0 else place.left + w + length / 2 - 3
        centre, size = (x, place.top + rng.uniform(0.35, 0.8) * h), (length + 5, thickness)
    cv2.ellipse(layer, (centre, size, rng.uniform(-15, 15)), 255, -1)
