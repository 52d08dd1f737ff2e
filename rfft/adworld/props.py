"""What stands beside the product: its size in the picture is right, or it is the fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rfft.adworld import assets
from rfft.adworld.assets import Icon
from rfft.adworld.canvas import SIZE, Canvas, resized
from rfft.adworld.placement import Placement, ramp
from rfft.adworld.variety import nameless

LEAST, MOST = 8, 28  # pixels: props of these heights fit beside a product


def asked_heights(product: Icon, drawn_height: int) -> dict[str, float]:
    """Return the true height in pixels, beside this product, of the props that fit the picture."""
    scale = drawn_height / product.height_cm
    heights = {name: prop.height_cm * scale for name, prop in assets.props().items()}
    return {name: px for name, px in heights.items() if LEAST <= px <= MOST}


def choose(
    product: Icon,
    place: Placement,
    attributes: Mapping[str, str],
    kind: str,
    icons: Sequence[Icon],
    label: str,
    rng: np.random.Generator,
) -> Icon | None:
    """Return what stands beside the product: the prop asked for, or where `kind` says so any icon that fits,
    or a nameless thing.

    Where its size is to be the fault, something must stand there.
    """
    name = attributes["prop"]
    if kind in ("any", "nameless") and (label == "size_mismatch" or rng.random() < 0.75):
        scale = place.icon.shape[0] / product.height_cm
        if kind == "nameless":
            return nameless(LEAST / scale, MOST / scale, rng)
        fitting = [i for i in icons if LEAST <= i.height_cm * scale <= MOST and i.name != product.name]
        if fitting:
            return fitting[rng.integers(len(fitting))]
    if name == "none" and label == "size_mismatch":
        names = list(asked_heights(product, place.icon.shape[0])) or list(assets.PROPS)
        name = names[rng.integers(len(names))]
    return None if name == "none" else assets.props()[name]


def paint(
    canvas: Canvas, product: Icon, place: Placement, prop: Icon, label: str, rng: np.random.Generator
) -> None:
    """Paint a prop beside the product: to scale, or several times too large or too small."""
    height = prop.height_cm * place.icon.shape[0] / product.height_cm
    if label == "size_mismatch":
        height = _wrong(height, rng)
    icon = resized(prop, height)
    h, w = icon.shape[:2]
    room_left, room_right = place.left, SIZE - place.left - place.width
    on_left = rng.random() < room_left / max(room_left + room_right, 1)
    gap = rng.uniform(-3, 4)
    left = place.left - gap - w if on_left else place.left + place.width + gap
    left = int(np.clip(round(left), -w // 4, SIZE - w + w // 4))
    base = int(np.clip(place.base + rng.integers(-4, 4), min(place.horizon + 3, SIZE - 1), SIZE - 1))
    canvas.shade(left + w / 2, base - 1, w, 0.6, 1.0)
    canvas.paint(icon, left, base - h, ramp(place.horizon, base), 80.0)


def _wrong(height: float, rng: np.random.Generator) -> float:
    """Return 3 to 4.5 times a height in pixels, or as small a part of it."""
    factor = rng.uniform(3, 4.5)
    too_large = height * factor <= 46 and (height < 13 or rng.random() < 0.5)
    return float(np.clip(height * factor if too_large else height / factor, 4, 50))
